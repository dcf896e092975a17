package doctor

// What is too little: agent, plugin and runtime write whole small files. They are root's, so what a file system keeps for root counts as free.
const (
	noRoom  = 64 << 10 // bytes
	fewRoom = 16 << 20
)

// disks finds file systems on which nothing can be written, or soon nothing more.
func disks(v View) []Finding {
	var l list
	if v.Disks.Err != nil {
		l.unknown("", v.Disks.Err)
	}
	const remedy = "make room on that file system: journalctl --vacuum-size=200M and crictl rmi --prune take away what is not needed"
	for _, d := range v.Disks.Value {
		switch {
		case d.ReadOnly:
			l.add(Error, d.Path, "see the kernel's log for errors of the disk, then mount it for writing again", "its file system is mounted read-only: no pod can start or end")
		case d.Free < noRoom:
			l.add(Error, d.Path, remedy, "its file system is full (%s): no pod can start or end", size(int64(d.Size)))
		case d.NoFiles:
			l.add(Error, d.Path, "take away small files that nobody needs: df -i names the file system", "its file system has room for no more files: no pod can start or end")
		case d.Free < fewRoom && d.Free < d.Size/10:
			l.add(Warning, d.Path, remedy, "its file system is nearly full: %s of %s are free", size(int64(d.Free)), size(int64(d.Size)))
		}
	}
	return l
}

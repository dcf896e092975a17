package config

// Setting describes one setting to whoever reads `--help` or a message about it. All of it is text.
type Setting struct {
	Name    string // as Calico's documentation spells it: VXLANPort
	Env     string // the environment variable: FELIX_VXLANPORT
	Default string // "": none
	Meaning string // what it does and what it may hold, as a clause without a full stop
}

// FelixSettings lists every setting that Effective and Local heed, in the order in which people should read them.
func FelixSettings() []Setting {
	table := felixRows()
	out := make([]Setting, len(table))
	for i, r := range table {
		out[i] = r.Setting
	}
	return out
}

package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/store"
)

// What is worth a word of an etcd that works.
const (
	slow     = 100 * time.Millisecond // for one read: ADDs take several
	verySlow = time.Second            // requests of etcd's own begin to time out
	apart    = 2 * time.Second        // two clocks: answers bear whole seconds
	farApart = time.Minute            // certificates and leases of others begin to fail
	nearFull = 0.8                    // of the quota
)

func etcd(v View) []Finding {
	var l list
	if v.Etcd.Err != nil {
		l.add(Error, "settings", "correct the settings of etcd: ETCD_ENDPOINTS and its like, or the command's configuration file", "etcd cannot be asked: %v", v.Etcd.Err)
		return l
	}
	reached := 0
	for _, m := range v.Etcd.Value {
		if m.Err != nil {
			l.away(v, m)
			continue
		}
		reached++
		l.member(m)
	}
	for i := range l {
		if reached > 0 && strings.HasPrefix(l[i].What, unreachable) { // the others serve
			l[i].Severity = Warning
		}
	}
	l.clocks(v.Etcd.Value)
	l.data(v, reached)
	return l
}

const unreachable = "does not answer: "

// away says why an endpoint does not answer: what the certificates' check has told is only referred to.
func (l *list) away(v View, m store.Member) {
	remedy := "start etcd there, or see what is between; ETCD_ENDPOINTS says where it is looked for"
	switch {
	case errors.Is(m.Err, store.ErrUnauthorized):
		remedy = "correct ETCD_USERNAME and ETCD_PASSWORD, or the certificate by whose name etcd knows its users"
	case byCertificates(m.Err):
		remedy = "correct the certificates or settings that the text names"
	}
	l.add(Error, m.Endpoint, remedy, "%s%v", unreachable, m.Err)
	if byCertificates(m.Err) {
		l.blame(v, "certificates")
	}
}

// member judges what an endpoint that answers says.
func (l *list) member(m store.Member) {
	for _, wrong := range m.Wrong {
		switch {
		case strings.Contains(wrong, "NOSPACE"):
			l.add(Error, m.Endpoint, "compact and defragment it or raise its --quota-backend-bytes, then disarm the alarm (etcdctl alarm disarm)",
				"alarm NOSPACE: it is full (%s of %s) and takes no writes, so no pod can start", size(m.Size), size(m.Quota))
		case strings.Contains(wrong, "CORRUPT"):
			l.add(Error, m.Endpoint, "replace this member by one that copies the others' data", "alarm CORRUPT: its data differ from the other members'")
		case strings.Contains(wrong, "no leader"): // told below
		default:
			l.add(Error, m.Endpoint, "see etcd's log", "it says: %s", wrong)
		}
	}
	if !m.Leader {
		l.add(Error, m.Endpoint, "start the other members: more than half of them must run and reach each other", "it knows no leader: there is no quorum, and nothing can be written")
	}
	if full := float64(m.Size) / float64(max(m.Quota, 1)); m.Quota > 0 && full > nearFull && !strings.Contains(strings.Join(m.Wrong, " "), "NOSPACE") {
		l.add(Warning, m.Endpoint, "compact and defragment it, or raise its --quota-backend-bytes", "it is nearly full: %s of %s", size(m.Size), size(m.Quota))
	}
	switch {
	case m.Took > verySlow:
		l.add(Error, m.Endpoint, "see to its disk and to the network between", "it took %v to answer", m.Took.Round(time.Millisecond))
	case m.Took > slow:
		l.add(Warning, m.Endpoint, "see to its disk and to the network between: ADDs wait for several such answers", "it took %v to answer", m.Took.Round(time.Millisecond))
	}
}

// clocks compares the endpoints' clocks with ours.
func (l *list) clocks(members []store.Member) {
	for _, m := range members {
		if m.Clock.IsZero() {
			continue
		}
		off := m.Clock.Add(500 * time.Millisecond).Sub(m.Asked) // on average a cut-off second has half of it left
		s, where := Warning, "ahead of"
		if off < 0 {
			off, where = -off, "behind"
		}
		if off >= farApart {
			s = Error
		}
		if off > apart {
			l.add(s, m.Endpoint, "run an NTP client on both hosts: certificates are valid by the clock", "its clock is %v %s this host's", off.Round(time.Second), where)
		}
	}
}

// data judges what was read, by whichever endpoint.
func (l *list) data(v View, reached int) {
	d, err := v.Data.Value, v.Data.Err
	for _, bad := range d.Bad {
		l.add(Error, bad.Key, "correct the value", "cannot be read: %v", bad.Err)
	}
	switch {
	case err != nil && reached == 0: // told
	case errors.Is(err, store.ErrUnauthorized):
		l.add(Error, "data", "", "%v", err)
	case err != nil:
		l.add(Error, "data", "see that more than half of etcd's members run and reach each other", "endpoints answer, but nothing can be read: %v", err)
	case d.Cluster == nil && slices.ContainsFunc(d.Bad, func(b store.UnreadableError) bool { return strings.Contains(b.Key, "clusterinformations/") }): // told
	case d.Cluster == nil:
		l.add(Error, "ClusterInformation(default)", "see that this is the right etcd and that it has its data; the first agent of a new cluster writes it",
			"is not there: etcd lost its data or never had any, and agents leave the kernel as it is")
	case d.Cluster.Spec.DatastoreReady == nil || !*d.Cluster.Spec.DatastoreReady:
		l.add(Error, "ClusterInformation(default)", "muslinctl datastore migrate unlock, once whoever locked it is done", "datastoreReady is not true: the datastore is locked, and pods cannot start")
	case d.Took > slow:
		l.add(Warning, "data", "see to etcd's disk and to the network between", "a read by all members took %v", d.Took.Round(time.Millisecond))
	}
}

// size is a number of bytes as people read it.
func size(n int64) string {
	if n <= 0 {
		return "an unknown size"
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// days is a time as people read it.
func days(d time.Duration) string {
	if d < 48*time.Hour {
		return d.Round(time.Minute).String()
	}
	return fmt.Sprintf("%d days", int(d/(24*time.Hour)))
}

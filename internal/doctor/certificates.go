package doctor

import (
	"errors"
	"io/fs"
	"time"

	"github.com/muslin-cni/muslin/pkg/store"
)

// soon is how long before its end a certificate is worth a warning: enough to order another one.
const soon = 30 * 24 * time.Hour

// certificates finds what cannot be used now.
func certificates(v View) []Finding {
	var l list
	if v.Certificates.Err != nil {
		l.unknown("", v.Certificates.Err)
	}
	for _, c := range v.Certificates.Value {
		what := c.Owner + "'s " + c.Kind
		switch {
		case errors.Is(c.Err, fs.ErrNotExist):
			l.add(Error, c.Path, "put it there, or correct the setting that names it", "%s is not there", what)
		case c.Err != nil:
			l.add(Error, c.Path, "put a good one there, or correct the setting that names it", "%s cannot be used: %v", what, c.Err)
		case c.To.IsZero():
		case v.Now.After(c.To):
			l.add(Error, c.Path, "renew it; running agents take the new one with their next connection", "%s expired %s ago, at %s", what, days(v.Now.Sub(c.To)), c.To.UTC().Format(time.RFC3339))
		case v.Now.Before(c.From):
			l.add(Error, c.Path, "set this host's clock, or renew the certificate", "%s is valid only from %s on", what, c.From.UTC().Format(time.RFC3339))
		}
	}
	return l
}

// expiry finds what will not be usable soon, and what is usable by others.
func expiry(v View) []Finding {
	var l list
	for _, c := range v.Certificates.Value {
		left := c.To.Sub(v.Now)
		if c.Err == nil && !c.To.IsZero() && left >= 0 && left < soon {
			l.add(Warning, c.Path, "renew it; running agents take the new one with their next connection", "%s's %s ends in %s, at %s", c.Owner, c.Kind, days(left), c.To.UTC().Format(time.RFC3339))
		}
		if c.Kind == KeyKind && c.Mode&othersRead != 0 {
			l.add(Warning, c.Path, "chmod 600", "%s's key can be read by others than its owner (mode %04o)", c.Owner, c.Mode.Perm())
		}
	}
	return l
}

// othersRead are the bits by which group and others read a file.
const othersRead fs.FileMode = 0o044

// KeyKind is the Kind of a private key.
const KeyKind = "key"

// byCertificates tells whether certificates are the reason that etcd is not reached: by what TLS says, or because nothing was even sent.
func byCertificates(err error) bool {
	return errors.Is(err, store.ErrHandshake) || !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnauthorized)
}

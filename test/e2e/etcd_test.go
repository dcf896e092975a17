package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// What makes the test binary talk to etcd, from wherever it is started.
const (
	keysVar  = "MUSLIN_E2E_KEYS"  // print what it holds below this prefix
	valueVar = "MUSLIN_E2E_VALUE" // put this under that key instead; gone: delete what is below that prefix
	timesVar = "MUSLIN_E2E_TIMES" // so often, and delete it again each time

	gone      = "-"
	compacted = "--" // of any key: forget all history
	corrupted = "!!" // of any key: raise the alarm that etcd raises when a member's data differ
	disarmed  = "!-" // of any key: take all alarms back
	filled    = "#"  // put much below that prefix, until five sixths of etcd's quota are used
	brimful   = "##" // the same until etcd refuses it
	emptied   = "#-" // take that away, with its history and the room that it had
	guarded   = "&"  // of any key: let nobody in who does not log in
	unguarded = "&-" // of any key: let everybody in again
	piped     = "<"  // the value is in standard input: one in the environment cannot be longer than 128 KiB
)

func talkToEtcd(prefix string) error {
	secure, err := tlsFromEnv()
	if err != nil {
		return err
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(os.Getenv("ETCD_ENDPOINTS"), ","), TLS: secure, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), nettest.Patience(5*time.Second))
	defer cancel()
	value, writes := os.LookupEnv(valueVar)
	if value == piped {
		all, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		value = string(all)
	}
	if value == compacted {
		now, err := c.Get(ctx, prefix)
		if err == nil {
			_, err = c.Compact(ctx, now.Header.Revision)
		}
		return err
	}
	switch value {
	case corrupted:
		return corrupt(ctx, c)
	case disarmed:
		_, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		return err
	case filled, brimful:
		return fillUp(c, prefix, value == brimful)
	case emptied:
		return empty(ctx, c, prefix)
	case guarded, unguarded:
		return guard(ctx, c, value == guarded)
	}
	if value == gone {
		_, err := c.Delete(ctx, prefix, clientv3.WithPrefix())
		return err
	}
	if times, err := strconv.Atoi(os.Getenv(timesVar)); err == nil {
		return flapKey(c, prefix, value, times)
	}
	if writes {
		_, err := c.Put(ctx, prefix, value)
		return err
	}
	got, err := c.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	out := map[string]string{}
	for _, kv := range got.Kvs {
		out[string(kv.Key)] = string(kv.Value)
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func flapKey(c *clientv3.Client, key, value string, times int) error {
	ctx, cancel := context.WithTimeout(context.Background(), nettest.Patience(time.Minute))
	defer cancel()
	for range times {
		if _, err := c.Put(ctx, key, value); err != nil {
			return err
		}
		if _, err := c.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// corrupt raises the alarm of a member whose data are wrong.
func corrupt(ctx context.Context, c *clientv3.Client) error {
	now, err := c.Get(ctx, "/")
	if err != nil {
		return err
	}
	_, err = pb.NewMaintenanceClient(c.ActiveConnection()).Alarm(ctx, &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT, MemberID: now.Header.MemberId,
	})
	return err
}

// fillUp writes until etcd is nearly full, or full.
func fillUp(c *clientv3.Client, prefix string, brimful bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), nettest.Patience(30*time.Second))
	defer cancel()
	s, err := c.Status(ctx, c.Endpoints()[0])
	if err != nil {
		return err
	}
	value := strings.Repeat("x", 256<<10)
	for size := s.DbSize; brimful || size < s.DbSizeQuota/6*5; size += int64(len(value)) { // it says how large it is only some time after a write
		_, err := c.Put(ctx, prefix+strconv.FormatInt(size, 10), value)
		if brimful && errors.Is(err, rpctypes.ErrNoSpace) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// empty does what an operator does whose etcd is full.
func empty(ctx context.Context, c *clientv3.Client, prefix string) error {
	now, err := c.Delete(ctx, prefix, clientv3.WithPrefix())
	if err == nil {
		_, err = c.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
	}
	for _, endpoint := range c.Endpoints() {
		_, failed := c.Defragment(ctx, endpoint)
		err = errors.Join(err, failed)
	}
	if err == nil {
		_, err = c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
	}
	return err
}

// guard switches on that etcd knows its users, or off.
func guard(ctx context.Context, c *clientv3.Client, on bool) error {
	const root = "root"
	if on {
		_, made := c.RoleAdd(ctx, root)
		_, added := c.UserAdd(ctx, root, root)
		_, granted := c.UserGrantRole(ctx, root, root)
		if err := errors.Join(made, added, granted); err != nil {
			return err
		}
		_, err := c.AuthEnable(ctx)
		return err
	}
	in, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Username: root, Password: root, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	_, err = in.AuthDisable(ctx)
	return err
}

// flap puts a value under a key and deletes it, so many times.
func flap(t *testing.T, l *lab.Lab, times int, key, value string) {
	t.Helper()
	var errs bytes.Buffer
	c := lab.Command{Args: []string{self(t)}, Env: []string{keysVar + "=" + key, valueVar + "=" + value, timesVar + "=" + strconv.Itoa(times)}, Stderr: &errs}
	if err := l.Exec(t.Context(), "fabric", c); err != nil {
		t.Fatalf("put and delete %s: %v: %s", key, err, errs.String())
	}
}

// tlsFromEnv is what the lab has set; nil: its etcd does without.
func tlsFromEnv() (*tls.Config, error) {
	if os.Getenv("ETCD_CA_CERT_FILE") == "" {
		return nil, nil
	}
	ca, err := os.ReadFile(os.Getenv("ETCD_CA_CERT_FILE"))
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(os.Getenv("ETCD_CERT_FILE"), os.Getenv("ETCD_KEY_FILE"))
	if err != nil {
		return nil, err
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(ca)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: trusted, Certificates: []tls.Certificate{pair}}, nil
}

// values is what etcd holds below a prefix, by key.
func values(t *testing.T, l *lab.Lab, prefix string) map[string]string {
	t.Helper()
	var out, errs bytes.Buffer
	c := lab.Command{Args: []string{self(t)}, Env: []string{keysVar + "=" + prefix}, Stdout: &out, Stderr: &errs}
	if err := l.Exec(t.Context(), "fabric", c); err != nil {
		t.Fatalf("list keys: %v: %s", err, errs.String())
	}
	all := map[string]string{}
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		t.Fatalf("list keys: %v", err)
	}
	return all
}

// put writes a value into etcd as it is.
func put(t *testing.T, l *lab.Lab, key, value string) {
	t.Helper()
	var errs bytes.Buffer
	c := lab.Command{Args: []string{self(t)}, Env: []string{keysVar + "=" + key, valueVar + "=" + value}, Stderr: &errs}
	if len(value) > 100_000 {
		c.Env[1], c.Stdin = valueVar+"="+piped, strings.NewReader(value)
	}
	if err := l.Exec(t.Context(), "fabric", c); err != nil {
		t.Fatalf("put %s: %v: %s", key, err, errs.String())
	}
}

// keys lists the keys that etcd holds below a prefix, in order.
func keys(t *testing.T, l *lab.Lab, prefix string) []string {
	t.Helper()
	return slices.Sorted(maps.Keys(values(t, l, prefix)))
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

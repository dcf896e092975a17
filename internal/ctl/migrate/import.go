package migrate

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func importCommand(env cli.Env) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "import --filename=<FILE>",
		Short: "Fill an empty datastore with what export has printed",
		Long: "Fill an empty datastore with what export has printed, byte for byte. A datastore that holds anything else is refused. An import that was\n" +
			"interrupted is run again. No node works on the datastore before all is there: the ClusterInformation comes last, and what was locked when it was\n" +
			"exported is locked still.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			kvs, err := readFile(env.In, file)
			if err != nil {
				return err
			}
			return env.With(c.Context(), func(client *store.Client) error { return fill(c.Context(), env, client, kvs) })
		},
	}
	c.Flags().StringVarP(&file, "filename", "f", "", "the file; - is the standard input")
	_ = c.MarkFlagRequired("filename") // it exists
	return c
}

func readFile(stdin io.Reader, path string) ([]store.KV, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read export: %w", err)
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	kvs, err := read(in)
	if err != nil {
		return nil, fmt.Errorf("read export %s: %w", path, err)
	}
	return kvs, nil
}

// fill writes what is not there yet.
func fill(ctx context.Context, env cli.Env, c *store.Client, kvs []store.KV) error {
	missing, err := missing(ctx, c, kvs)
	if err != nil {
		return err
	}
	locked := false
	for batch := range batches(missing) {
		var t store.Txn
		t.Expect(cli.ClusterKey(), 0) // who starts to use the datastore now makes one
		for _, kv := range batch {
			t.PutRaw(kv.Key, kv.Value, 0)
		}
		if _, err := c.Commit(ctx, &t); err != nil {
			return fmt.Errorf("import: %w", err)
		}
	}
	for _, kv := range kvs {
		if e, err := store.Decode[api.ClusterInformation](store.KV{Key: kv.Key, Value: kv.Value, Rev: 1}); isCluster(kv.Key) && err == nil {
			locked = !e.Value.Ready()
		}
	}
	text := fmt.Sprintf("Imported %d keys.\n", len(missing))
	if locked {
		text += fmt.Sprintf("The datastore is locked, as it was when it was exported: %s datastore migrate unlock\n", env.Program)
	}
	_, err = io.WriteString(env.Out, text)
	return err
}

// missing is what the datastore does not hold yet, the ClusterInformation last. The error says what it holds beside.
func missing(ctx context.Context, c *store.Client, kvs []store.KV) ([]store.KV, error) {
	there, _, err := c.ReadAll(ctx, page, below()...)
	if err != nil {
		return nil, err
	}
	want := make(map[string][]byte, len(kvs))
	for _, kv := range kvs {
		want[kv.Key] = kv.Value
	}
	have := make(map[string]bool, len(there))
	for _, kv := range there {
		value, ok := want[kv.Key]
		if !ok {
			return nil, fmt.Errorf("the datastore is not empty: it holds %s, which is not in the file: nothing was imported", kv.Key)
		}
		if !bytes.Equal(value, kv.Value) {
			return nil, fmt.Errorf("the datastore is not empty: it holds another %s than the file: nothing was imported", kv.Key)
		}
		have[kv.Key] = true
	}
	out := slices.DeleteFunc(slices.Clone(kvs), func(kv store.KV) bool { return have[kv.Key] })
	slices.SortStableFunc(out, func(a, b store.KV) int {
		switch {
		case isCluster(a.Key) == isCluster(b.Key):
			return 0
		case isCluster(a.Key):
			return 1
		}
		return -1
	})
	return out, nil
}

// maxBytes bounds a transaction's values: etcd takes 1.5 MiB a request.
const maxBytes = 1 << 20

// batches cuts the list into what one transaction takes.
func batches(kvs []store.KV) func(yield func([]store.KV) bool) {
	return func(yield func([]store.KV) bool) {
		for len(kvs) > 0 {
			n, size := 0, 0
			for n < len(kvs) && n < store.MaxKeys-1 {
				size += len(kvs[n].Key) + len(kvs[n].Value)
				if n > 0 && size > maxBytes {
					break
				}
				n++
			}
			if !yield(kvs[:n]) {
				return
			}
			kvs = kvs[n:]
		}
	}
}

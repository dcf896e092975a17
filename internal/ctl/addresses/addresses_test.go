package addresses_test

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/muslin-cni/muslin/internal/ctl/addresses"
	"github.com/muslin-cni/muslin/internal/ctl/clitest"
	"github.com/muslin-cni/muslin/internal/ctl/migrate"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestMain(m *testing.M) { clitest.Main(m, addresses.Command, migrate.Command) }

var update = flag.Bool("update", false, "rewrite what scripts compare with")

func TestGoldenScripts(t *testing.T) {
	clitest.Run(t, *update, map[string]func(*testscript.TestScript, bool, []string){"block": makeBlock})
}

// makeBlock is the script command "block CIDR NODE COUNT": it makes a block of a node with so many addresses assigned, and nothing else.
func makeBlock(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: block CIDR NODE COUNT")
	}
	cidr, err := netip.ParsePrefix(args[0])
	ts.Check(err)
	count, err := strconv.Atoi(args[2])
	ts.Check(err)
	b, err := block.New(cidr, args[1], time.Unix(1767225600, 0))
	ts.Check(err)
	for i := range count {
		_, b = block.Assign(b, 1, block.Owner{HandleID: fmt.Sprintf("net.%v-%d", cidr.Addr(), i), Attrs: map[string]string{api.AttrNode: args[1]}})
	}
	c := clitest.Client(ts)
	defer func() { ts.Check(c.Close()) }()
	_, err = store.Create(context.Background(), c, api.BlockKey(cidr), b)
	ts.Check(err)
}

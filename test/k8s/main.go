// Command k8s runs Muslin under a real Kubernetes on this machine: etcd, kube-apiserver, kube-controller-manager, kube-scheduler and three nodes with kubelet,
// containerd and kube-proxy each, built from Go modules and Debian packages, with images from no registry.
//
//	make k8s CMD=up                                  a cluster that stays, with Muslin by its manifest and the images of dist/
//	make k8s CMD='kubectl get pods -A -o wide'
//	make k8s CMD=down
//
// Goals, and how they are met:
//
//  1. Nothing of this machine changes. A cluster is a process tree below one keeper, which is the first process of a PID namespace of its own, in a network and
//     a mount namespace of its own; each node has namespaces of its own below that. Nothing has a name outside: no network namespace, no mount, no service.
//  2. Nothing is left behind, whoever is killed. With the keeper the kernel ends all that it started, and their namespaces, mounts and devices go with them; a
//     keeper that tests started ends with the test. What then remains are empty control groups and the cluster's folder, which `down` and the next `up` remove.
//  3. Kubernetes cannot tell: each program is the unmodified one, with the flags of an ordinary cluster. node.sh has what a node lacks on a machine like this.
//  4. A second run is quick: programs and images lie in the user's cache folder, below a hash of what they were made from.
//
// Several clusters may be up at a time; --cluster names them. `go test ./test/k8s` skips what needs a cluster, for that takes minutes and gigabytes: `make test-k8s`
// sets MUSLIN_K8S=1 and runs it; with MUSLIN_K8S=record, what tests and Kubernetes' own tests show goes into RESULTS.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Args[0] == keeperName {
		keep()
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	err := newCommand().ExecuteContext(ctx)
	stop()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(failed.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "k8s:", err)
		os.Exit(1)
	}
}

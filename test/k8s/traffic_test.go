package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// talkers are a server of one TCP connection that counts aloud, ten times a second, a server of many short ones, and one who listens to both from another node.
const talkers = `
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers:
  - {name: talker, image: %[1]s, command: [sh, -c, 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done | nc -l 9000']}
  - {name: web, image: %[1]s, args: [netexec, --http-port=8080]}
---
apiVersion: v1
kind: Pod
metadata: {name: listener, labels: {app: listener}}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 0
  containers: [{name: listener, image: %[1]s, args: [pause]}]
`

// stream is what comes in while it must not stop.
type stream struct {
	what  string
	heard <-chan int   // a number for each piece
	ended <-chan error // why it ended
}

// underTraffic does something while one connection between two nodes must go on and new ones must be made, some of each after it too.
func (w world) underTraffic(do func(goesOn func())) {
	w.apply(fmt.Sprintf(talkers, ownImage))
	w.kubectl("wait", "pod/talker", "pod/listener", "--for=condition=Ready", "--timeout=120s")
	talker := w.pods("app=talker")[0].addresses[0].String()
	ctx, stop := context.WithCancel(w.Context())
	defer stop()
	streams := []stream{
		w.listen(ctx, "the old connection", "exec nc "+talker+" 9000"),
		w.listen(ctx, "new connections", "i=0; while curl -sS --max-time 5 -o /dev/null http://"+talker+":8080/hostname; do i=$((i+1)); echo $i; sleep 0.1; done"),
	}
	goesOn := func() { w.hears(streams, 20) }
	goesOn()
	do(goesOn)
	stop()
	for _, s := range streams {
		w.Log(s.what, <-s.ended) // by our own hand
	}
	w.kubectl("delete", "pod/talker", "pod/listener", "--wait")
}

// listen runs a command in the listener that prints a number for each piece of what it hears, and ends when it hears nothing more.
func (w world) listen(ctx context.Context, what, command string) stream {
	heard, ended := make(chan int, 10000), make(chan error, 1)
	go func() { ended <- w.listenTo(ctx, command, heard) }()
	return stream{what, heard, ended}
}

func (w world) listenTo(ctx context.Context, command string, heard chan<- int) error {
	cmd, err := w.cluster.kubectl(ctx, "exec", "listener", "--", "sh", "-c", command)
	if err != nil {
		return err
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			return err
		}
		heard <- n
	}
	return errors.Join(errors.New("it ended"), cmd.Wait())
}

// hears waits until that many more pieces have come by each stream, from now on.
func (w world) hears(streams []stream, more int) {
	w.Helper()
	limit := time.After(time.Minute)
	for _, s := range streams {
		for range len(s.heard) + more {
			select {
			case <-s.heard:
			case err := <-s.ended:
				w.Fatal(s.what, err)
			case <-limit:
				w.Fatal(s.what, "is silent")
			}
		}
	}
}

// agentsKilledUnderTraffic kills every agent, one after the other.
func (w world) agentsKilledUnderTraffic() {
	w.underTraffic(func(goesOn func()) {
		for _, n := range w.nodes() {
			if err := w.killAgent(w.Context(), n.Name); err != nil {
				w.Fatal(err)
			}
			goesOn()
		}
		w.eventually("the agents to be back", func() error { return w.waitInstalled(w.Context()) })
		goesOn()
	})
}

// agentsUpgradedUnderTraffic has Kubernetes roll an image with another name over the agents, and roll back.
func (w world) agentsUpgradedUnderTraffic() {
	image := w.kubectl("get", "daemonset", "muslin-node", "--namespace="+system, "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	for _, n := range w.nodes() {
		if _, err := output(w.onNode(w.Context(), n.Name, "ctr", "-n", "k8s.io", "images", "tag", "--force", "docker.io/library/"+image, "docker.io/library/"+image+"-next")); err != nil {
			w.Fatal(err)
		}
	}
	w.underTraffic(func(goesOn func()) {
		w.kubectl("set", "image", "daemonset/muslin-node", "--namespace="+system, "muslin-node="+image+"-next")
		w.eventually("the new agents to serve", func() error { return w.waitInstalled(w.Context()) })
		goesOn()
		w.kubectl("rollout", "undo", "daemonset/muslin-node", "--namespace="+system)
		w.eventually("the old agents to serve again", func() error { return w.waitInstalled(w.Context()) })
		goesOn()
	})
}

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// unlimited is the share of who may use all processors.
const unlimited = 0

// limitPeriod is how often a limited process gets its share: short beside what is measured.
const limitPeriod = 5 * time.Millisecond

// limitProcessors gives this process so much of one processor and no more, by a control group of its own, as Kubernetes limits containers.
// lift takes the limit and the group away. It needs root.
func limitProcessors(share float64) (lift func() error, err error) {
	if share == unlimited {
		return func() error { return nil }, nil
	}
	root, settings, err := processorGroups(share)
	if err != nil {
		return nil, err
	}
	group := filepath.Join(root, fmt.Sprintf("muslin-bench-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, fmt.Errorf("limit etcd's share of the processors: %w (it needs root)", err)
	}
	lift = func() error { return errors.Join(enterGroup(root), os.Remove(group)) }
	for _, s := range settings {
		err = errors.Join(err, os.WriteFile(filepath.Join(group, s.file), []byte(s.value), 0o644))
	}
	if err = errors.Join(err, enterGroup(group)); err != nil {
		return nil, errors.Join(fmt.Errorf("limit etcd's share of the processors: %w", err), lift())
	}
	return lift, nil
}

// enterGroup puts this process, with all its threads, into a group.
func enterGroup(group string) error {
	return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0o644)
}

// groupSetting is what to write into a file of a group.
type groupSetting struct{ file, value string }

// processorGroups is where the kernel's control groups for processors are, in their second version or else in their first, and what sets a share.
func processorGroups(share float64) (root string, settings []groupSetting, err error) {
	period := limitPeriod.Microseconds()
	quota := int64(share * float64(period))
	const mount = "/sys/fs/cgroup"
	text, err := os.ReadFile(mount + "/cgroup.subtree_control")
	if err == nil && slices.Contains(strings.Fields(string(text)), "cpu") {
		return mount, []groupSetting{{"cpu.max", fmt.Sprintf("%d %d", quota, period)}}, nil
	}
	if _, err := os.Stat(mount + "/cpu/cgroup.procs"); err == nil {
		return mount + "/cpu", []groupSetting{{"cpu.cfs_period_us", fmt.Sprint(period)}, {"cpu.cfs_quota_us", fmt.Sprint(quota)}}, nil
	}
	return "", nil, fmt.Errorf("limit etcd's share of the processors: no control group below %s has the controller cpu", mount)
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// runPolicy runs the benchmarks of policy, which are with what they measure, and makes rows of what they report. Those of packets take turns with their
// floor by themselves.
func runPolicy(ctx context.Context, _ bench) (out []row, err error) {
	for _, args := range [][]string{
		{"-bench", "FullCompile|OneLabel|OnePolicy|OnePod", "-benchtime", "10x", "./internal/policy"},
		{"-bench", "PolicyToKernel", "-benchtime", "1000x", "./internal/agent"},
		{"-bench", "Packets", "-benchtime", "40x", "./internal/nft"},
	} {
		text, err := exec.CommandContext(ctx, "go", append([]string{"test", "-buildvcs=false", "-run", "^$", "-timeout", "60m"}, args...)...).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("benchmarks of policy: %w\n%s", err, text)
		}
		out = append(out, benchmarkRows(text)...)
	}
	return out, nil
}

// benchmarkRows reads what go test prints of benchmarks: a name, how often, and pairs of a number and its unit.
func benchmarkRows(text []byte) (out []row) {
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(fields[0], "Benchmark"), "-")
		for i := 2; i+1 < len(fields); i += 2 {
			n, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				continue
			}
			out = append(out, metricRow(name, n, fields[i+1]))
		}
	}
	return out
}

// metricRow is the row of one number. Ratios have x- in front of their unit, and the floor of packets has a name of its own.
func metricRow(name string, n float64, unit string) row {
	if what, ok := strings.CutPrefix(unit, "x-"); ok {
		return row{What: name + ": " + what, Ratio: fmt.Sprintf("%.2f", n)}
	}
	if what, ok := strings.CutPrefix(unit, "floor-"); ok {
		return row{What: name, Floor: fmt.Sprintf("%.0f %s", n, what)}
	}
	switch unit {
	case "ns/op", "cpu-ns/op":
		what := map[string]string{"ns/op": "time", "cpu-ns/op": "processor time"}[unit]
		return row{What: name + ": " + what, Subject: time.Duration(n).Round(time.Microsecond).String()}
	}
	return row{What: name + ": " + unit, Subject: strconv.FormatFloat(n, 'f', -1, 64)}
}

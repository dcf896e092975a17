// Package config holds the agent's settings, each with the sources that may set it.
//
// A setting of a node comes from the environment; one of the dataplane from, in this order, the environment (FELIX_…), the
// node's FelixConfiguration, the default FelixConfiguration, and our default. A value that cannot be read is a problem with
// the name of its source, and the next source counts.
package config

import "strings"

// Env looks up an environment variable; "" and not set are the same.
type Env func(name string) string

func isFalse(s string) bool {
	switch strings.ToLower(s) {
	case "false", "0", "no", "n", "f":
		return true
	}
	return false
}

package config

import "strings"

// InForce is a setting as it stands, and what made it so.
type InForce struct {
	Setting
	Value  string
	Source string // "default", or what it was read from
}

// NodeInForce is what an environment sets, variable by variable. Values are as written, readable or not; the password is hidden.
func NodeInForce(env Env) []InForce {
	var out []InForce
	for _, s := range NodeSettings() {
		v := InForce{Setting: s, Value: s.Default, Source: "default"}
		if text := env(s.Env); text != "" {
			v.Value, v.Source = text, "environment"
		}
		if strings.HasPrefix(s.Env, "ETCD_") || s.Env == "DATASTORE_TYPE" {
			if text := env("CALICO_" + s.Env); text != "" {
				v.Value, v.Source = text, "environment, as CALICO_"+s.Env
			}
		}
		if s.Env == "ETCD_PASSWORD" && v.Value != "" {
			v.Value = "(hidden)"
		}
		out = append(out, v)
	}
	return out
}

// FelixInForce is what the sources of FelixConfiguration's settings come to, setting by setting. A value that cannot be read does not count.
func FelixInForce(s Sources) []InForce {
	layers := s.layers()
	var out []InForce
	for _, r := range felixRows() {
		if r.local == "" { // the others stand in for what NodeInForce has
			out = append(out, r.inForce(layers))
		}
	}
	return out
}

func (r row) inForce(layers []layer) InForce {
	var scratch Dataplane
	for _, l := range layers {
		if text, source := l.lookup(r); text != "" && r.set(&scratch, text) == nil {
			return InForce{r.Setting, text, source}
		}
	}
	return InForce{r.Setting, r.Default, "default"}
}

package config

// Setting is one thing that can be set, as `--help` shows it.
type Setting struct {
	Name    string // in a resource; for what only the environment sets, the same as Env
	Env     string // the variable
	Default string // "": none
	Meaning string
}

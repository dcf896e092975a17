package config

// FelixSettings are the fields of FelixConfiguration that are heeded.
func FelixSettings() []Setting { return nil }

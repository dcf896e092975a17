package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// RemoveConfiguration takes the network configurations of ours away, whatever their names, so that the runtime calls our plugin no more. Those that
// cannot be read are left.
func (s Settings) RemoveConfiguration() (removed []string, err error) {
	entries, err := os.ReadDir(s.NetDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for network configurations: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.NetDir, e.Name())
		if ext := filepath.Ext(path); ext != ".conf" && ext != ".conflist" && ext != ".json" || !callsUs(path) {
			continue
		}
		if err := removeFile(path); err != nil {
			errs = append(errs, fmt.Errorf("remove a network configuration: %w", err))
			continue
		}
		removed = append(removed, path)
	}
	return removed, errors.Join(errs...)
}

// callsUs tells whether a network configuration names a program of ours: under its own name, or as Calico's where that name is a link to ours.
func callsUs(path string) bool {
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	type plugin struct {
		Type string
		IPAM struct{ Type string }
	}
	var conf struct {
		plugin
		Plugins []plugin
	}
	if json.Unmarshal(text, &conf) != nil {
		return false
	}
	for _, p := range append(conf.Plugins, conf.plugin) {
		for _, name := range []string{p.Type, p.IPAM.Type} {
			if _, alias := aliases[name]; alias || strings.HasPrefix(name, "muslin") {
				return true
			}
		}
	}
	return false
}

// RemoveFiles takes away what else was put on the host: certificates, kubeconfig, and the programs that are still as they were put there.
func (s Settings) RemoveFiles() error {
	errs := []error{removeTree(filepath.Join(s.NetDir, tlsName)), removeFile(filepath.Join(s.NetDir, kubeconfigName))}
	for _, dir := range append([]string{s.NetDir}, s.Bins...) {
		if _, err := os.Stat(dir); err == nil {
			errs = append(errs, sweep(dir))
		}
	}
	for _, dir := range s.Bins {
		listed, err := readReceipt(dir)
		if err == nil {
			err = removeUnchanged(dir, listed)
		}
		if err == nil {
			err = removeFile(filepath.Join(dir, receiptName))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove files from the host: %w", err)
	}
	return nil
}

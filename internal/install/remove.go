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

// Removed is what RemoveConfiguration has taken away.
type Removed struct {
	Files []string // network configurations
	Logs  []string // the logs of our plugins that these named; the files are still there
}

// RemoveConfiguration takes the network configurations of ours away, whatever their names, so that the runtime calls our plugin no more. Those that
// cannot be read are left.
func (s Settings) RemoveConfiguration() (removed Removed, err error) {
	entries, err := os.ReadDir(s.NetDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return removed, fmt.Errorf("look for network configurations: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.NetDir, e.Name())
		ours, logs := callsUs(path)
		if ext := filepath.Ext(path); ext != ".conf" && ext != ".conflist" && ext != ".json" || !ours {
			continue
		}
		if err := removeFile(path); err != nil {
			errs = append(errs, fmt.Errorf("remove a network configuration: %w", err))
			continue
		}
		removed.Files, removed.Logs = append(removed.Files, path), append(removed.Logs, logs...)
	}
	return removed, errors.Join(errs...)
}

// callsUs tells whether a network configuration names a program of ours, under its own name or as Calico's where that name is a link to ours, and
// which logs such programs have.
func callsUs(path string) (ours bool, logs []string) {
	text, err := os.ReadFile(path)
	if err != nil {
		return false, nil
	}
	type plugin struct {
		Type string
		IPAM struct{ Type string }
		Log  string `json:"log_file_path"`
	}
	var conf struct {
		plugin
		Plugins []plugin
	}
	if json.Unmarshal(text, &conf) != nil {
		return false, nil
	}
	for _, p := range append(conf.Plugins, conf.plugin) {
		if !isOurs(p.Type) && !isOurs(p.IPAM.Type) {
			continue
		}
		ours = true
		if p.Log != "" {
			logs = append(logs, p.Log)
		}
	}
	return ours, logs
}

func isOurs(program string) bool {
	_, alias := aliases[program]
	return alias || strings.HasPrefix(program, "muslin")
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

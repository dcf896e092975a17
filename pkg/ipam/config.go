package ipam

import (
	"errors"

	"github.com/muslin-cni/muslin/pkg/api"
)

// defaultMaxBlocks bounds the blocks of one node where neither configuration nor request does: a guard against runaway claims.
const defaultMaxBlocks = 20

// CheckConfig reports why a configuration may not be stored. What is stored all the same is worked with as it says.
func CheckConfig(c api.IPAMConfig) error {
	var errs []error
	if !c.StrictAffinity && !c.AutoAllocateBlocks {
		errs = append(errs, errors.New("Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time")) //nolint:staticcheck // the text that operators know
	}
	if c.MaxBlocksPerHost > 0 && !c.StrictAffinity {
		errs = append(errs, errors.New("MaxBlocksPerHost requires StrictAffinity to be enabled"))
	}
	if c.MaxBlocksPerHost < 0 {
		errs = append(errs, errors.New("MaxBlocksPerHost must not be negative"))
	}
	return errors.Join(errs...)
}

// config is the configuration that holds.
func (f Facts) config() api.IPAMConfig {
	if f.Config.Exists() {
		return *f.Config.Value
	}
	return api.DefaultIPAMConfig()
}

// limitOf is how many blocks a node may have in the pools of a request, and what to do where that is too few.
func limitOf(s *search) (limit int, remedy string) {
	const fewer = "run fewer pods on the node"
	limit = s.cfg.MaxBlocksPerHost
	if s.MaxBlocks > 0 && (limit <= 0 || s.MaxBlocks < limit) {
		return s.MaxBlocks, "raise the limit that the request sets, or " + fewer
	}
	if limit > 0 {
		return limit, "raise it (muslinctl ipam configure --max-blocks-per-host), or " + fewer
	}
	return defaultMaxBlocks, "set a higher maxBlocksPerHost, use pools with larger blocks, or " + fewer
}

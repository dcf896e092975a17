// Command image packs this project's programs, with what they need of Debian's packages, into container images.
//
//	go run ./test/image -bin bin -plugins FOLDER -out dist -version v1.2.3
//
// No daemon takes part, and no registry: an image is a tar file that `ctr images import` and `docker load` take, written here. The same
// inputs give the same bytes, so that an image's digest says what is in it; the SPDX document beside it says so in words.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	var b build
	flag.StringVar(&b.bin, "bin", "bin", "folder with the programs")
	flag.StringVar(&b.plugins, "plugins", "", "folder with the CNI project's plugins")
	flag.StringVar(&b.out, "out", "dist", "folder for the images")
	flag.StringVar(&b.cache, "cache", filepath.Join(os.TempDir(), "muslin-debian"), "folder that keeps Debian's packages")
	flag.StringVar(&b.version, "version", "unknown", "tag of the images")
	flag.StringVar(&b.prefix, "prefix", "muslin", "what the images' names begin with, such as a registry and a project")
	flag.Parse()
	if err := b.run(); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// spdx lists what is in the image: Debian's packages, and the modules that each Go program was linked from, as the linker wrote them into it
// (SPDX 2.3 as JSON).
func (s spec) spdx(files []file, digest string) ([]byte, error) {
	parts := map[string]object{}
	for _, p := range s.packages {
		parts["deb-"+p.name] = part("deb-"+p.name, p.name, p.version, fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", p.name, url.QueryEscape(p.version), p.arch), p.sum)
	}
	for _, f := range files {
		if f.from == "" {
			continue
		}
		info, err := buildinfo.ReadFile(f.from)
		if err != nil {
			continue // not a Go program
		}
		parts["go"] = part("go", "go", info.GoVersion, "pkg:golang/std@"+strings.TrimPrefix(info.GoVersion, "go"), "")
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			sum := sha256.Sum256([]byte(m.Path + "@" + m.Version))
			id := "go-" + hex.EncodeToString(sum[:8])
			parts[id] = part(id, m.Path, m.Version, "pkg:golang/"+m.Path+"@"+m.Version, "")
		}
	}
	image := part("image", s.name, s.tag, "pkg:oci/"+url.QueryEscape(s.name)+"@"+url.QueryEscape(digest), "")
	packages, relations := []object{image}, []object{{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-image"}}
	for _, id := range slices.Sorted(maps.Keys(parts)) {
		packages = append(packages, parts[id])
		relations = append(relations, object{"spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": "SPDXRef-" + id})
	}
	return json.MarshalIndent(object{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": s.name + ":" + s.tag,
		"documentNamespace": "https://github.com/muslin-cni/muslin/spdx/" + strings.TrimPrefix(digest, "sha256:"),
		"creationInfo":      object{"created": epoch(), "creators": []string{"Tool: muslin-image"}},
		"packages":          packages, "relationships": relations,
	}, "", " ")
}

func part(id, name, version, purl, sum string) object {
	o := object{
		"SPDXID": "SPDXRef-" + id, "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
		"externalRefs": []object{{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}},
	}
	if sum != "" {
		o["checksums"] = []object{{"algorithm": "SHA256", "checksumValue": sum}}
	}
	return o
}

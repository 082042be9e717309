package listing

import (
	"encoding/json"
	"errors"
	"regexp"
)

// KernelRelease is a release that kernel.org offers at present.
type KernelRelease struct {
	Version string // "6.19.9"
	Moniker string // "stable", "longterm", "mainline"
	Source  string // URL of the archive
	Date    string // "2026-03-12"
	EOL     bool   // gets no more fixes
}

var kernelVersion = regexp.MustCompile(`^[0-9]{1,3}\.[0-9]{1,4}(\.[0-9]{1,4})?(-rc[0-9]{1,2})?$`)

// KernelOrg reads kernel.org's releases.json, in its order. What has no version
// of the usual form (linux-next) is left out.
func KernelOrg(data []byte) ([]KernelRelease, error) {
	const what = "kernel.org's list of releases"
	var raw struct {
		Releases []struct {
			Version  string `json:"version"`
			Moniker  string `json:"moniker"`
			Source   string `json:"source"`
			IsEOL    bool   `json:"iseol"`
			Released struct {
				ISODate string `json:"isodate"`
			} `json:"released"`
		} `json:"releases"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, unreadable(what, err)
	}
	var all []KernelRelease
	for _, r := range raw.Releases {
		if kernelVersion.MatchString(r.Version) {
			all = append(all, KernelRelease{r.Version, r.Moniker, r.Source, r.Released.ISODate, r.IsEOL})
		}
	}
	if len(all) == 0 {
		return nil, unreadable(what, errors.New("it names no release"))
	}
	return all, nil
}

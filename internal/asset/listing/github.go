package listing

import (
	"encoding/json"
	"errors"
	"time"
)

// Release is a release on GitHub.
type Release struct {
	Tag        string
	Prerelease bool
	Published  time.Time
	Assets     []ReleaseAsset
}

// ReleaseAsset is a file of a release.
type ReleaseAsset struct {
	Name   string
	URL    string
	Size   int64
	Digest string // "sha256:…", "" for files from before GitHub noted it
}

// GitHubReleases reads the releases of a repository, the newest first, without
// drafts (docs.github.com/en/rest/releases).
func GitHubReleases(data []byte) ([]Release, error) {
	const what = "the list of releases"
	var raw []struct {
		TagName     string    `json:"tag_name"`
		Draft       bool      `json:"draft"`
		Prerelease  bool      `json:"prerelease"`
		PublishedAt time.Time `json:"published_at"`
		Assets      []struct {
			Name   string `json:"name"`
			URL    string `json:"browser_download_url"`
			Size   int64  `json:"size"`
			Digest string `json:"digest"`
		} `json:"assets"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		var refusal struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(data, &refusal) == nil && refusal.Message != "" {
			err = errors.New(refusal.Message)
		}
		return nil, unreadable(what, err)
	}
	var releases []Release
	for _, r := range raw {
		if r.Draft || !validName(r.TagName) {
			continue
		}
		rel := Release{Tag: r.TagName, Prerelease: r.Prerelease, Published: r.PublishedAt}
		for _, a := range r.Assets {
			if validName(a.Name) {
				rel.Assets = append(rel.Assets, ReleaseAsset{a.Name, a.URL, a.Size, a.Digest})
			}
		}
		releases = append(releases, rel)
	}
	return releases, nil
}

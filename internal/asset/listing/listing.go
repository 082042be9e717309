// Package listing reads the listings in which upstreams say what they have:
// directory pages of web servers, S3 buckets, GitHub's releases, kernel.org's
// releases. It reads bytes that anybody may have written, and does no input or
// output.
package listing

import (
	"github.com/mvmctl/mvm"
)

// maxEntries is how many entries of one listing are read; the longest that we
// know, kernel.org's directory of a series, has some 6,000.
const maxEntries = 100_000

func unreadable(what string, err error) error {
	return mvm.Errorf(mvm.ErrBroken, "%s cannot be read: %w", what, err).
		WithHint("a proxy or a login page may have answered in its place; try again with --no-cache")
}

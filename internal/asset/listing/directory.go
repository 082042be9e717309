package listing

import (
	"errors"
	"html"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Entry is a file or directory in a directory page.
type Entry struct {
	Name string // without a final slash
	Dir  bool
}

var (
	link      = regexp.MustCompile(`(?i)<a\s[^>]*?href\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))`)
	htmlStart = regexp.MustCompile(`(?i)<(?:!doctype html|html|head|title|body|pre|table|a\s)`)
)

// Directory reads the page that a web server makes of a directory (nginx's
// autoindex, Apache's mod_autoindex, lighttpd, S3 websites and their like: an HTML
// page whose links lead to the entries). base is the page's own URL. Links that
// lead anywhere but to a direct child are passed over: parents, sort orders, other
// hosts. The order is that of the page, without repetitions.
func Directory(page []byte, base string) ([]Entry, error) {
	const what = "the directory page"
	if !htmlStart.Match(page) {
		return nil, unreadable(what, errors.New("it is no HTML"))
	}
	at, err := url.Parse(base)
	if err != nil {
		return nil, unreadable(what, err)
	}
	if !strings.HasSuffix(at.Path, "/") {
		at.Path += "/"
	}
	var entries []Entry
	seen := map[string]bool{}
	for _, m := range link.FindAllSubmatch(page, maxEntries) {
		e, ok := child(at, html.UnescapeString(string(slices.Concat(m[1], m[2], m[3]))))
		if ok && !seen[e.Name] {
			seen[e.Name] = true
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// child resolves a link to a direct child of a directory.
func child(dir *url.URL, href string) (Entry, bool) {
	ref, err := url.Parse(strings.TrimSpace(href))
	if err != nil || ref.RawQuery != "" || ref.ForceQuery || href == "" {
		return Entry{}, false
	}
	u := dir.ResolveReference(ref)
	name, below := strings.CutPrefix(u.Path, dir.Path)
	name, isDir := strings.CutSuffix(name, "/")
	if !below || u.Host != dir.Host || !validName(name) {
		return Entry{}, false
	}
	return Entry{name, isDir}, true
}

// validName tells names of one file from paths, and from what is none.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && name == path.Base(name) && !strings.ContainsFunc(name, func(r rune) bool {
		return r < ' ' || r == 0x7f || r == '\\' || r == '/'
	})
}

package kernel

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// symbol is what the source says of an option, put together from all places that
// define it.
type symbol struct {
	prompt  bool     // users can set it
	depends []string // the names in its "depends on" and the "if" around it
	modules bool     // depends on m
}

var (
	symbolStart = regexp.MustCompile(`^\s*(?:menu)?config\s+([A-Za-z0-9_]+)\s*$`)
	symbolName  = regexp.MustCompile(`[A-Z][A-Z0-9_]+`)
	promptLine  = regexp.MustCompile(`^\s+(?:(?:bool|tristate|string|int|hex)\s+["']|prompt\s)`)
)

// symbols finds the definitions of options in a source tree
// (Documentation/kbuild/kconfig-language.rst). It is for hints: what Kconfig itself
// makes of them is in the final configuration.
func symbols(source string, names []string) map[string]*symbol {
	want := map[string]bool{}
	for _, n := range names {
		want[strings.TrimPrefix(n, "CONFIG_")] = true
	}
	found := map[string]*symbol{}
	_ = filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error { // what cannot be read explains nothing
		if err != nil || d.IsDir() || !strings.HasPrefix(d.Name(), "Kconfig") {
			return nil //nolint:nilerr // likewise
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // likewise
		}
		readSymbols(data, want, found)
		return nil
	})
	return found
}

// readSymbols reads one file of definitions.
func readSymbols(data []byte, want map[string]bool, found map[string]*symbol) {
	var at *symbol
	var around [][]string  // the "if" blocks that we are in
	help, deep := false, 0 // in a help text, whose first line is indented so deep
	for line := range bytes.Lines(data) {
		text := strings.TrimRight(string(line), " \t\r\n")
		word := strings.TrimSpace(text)
		in := len(text) - len(strings.TrimLeft(text, " \t"))
		if help && word != "" && deep == 0 {
			deep = in
		}
		if help && (word == "" || in > 0 && in >= deep) {
			continue
		}
		help = false
		if m := symbolStart.FindStringSubmatch(text); m != nil {
			at = nil
			if want[m[1]] {
				if at = found[m[1]]; at == nil {
					at = &symbol{}
					found[m[1]] = at
				}
				for _, names := range around {
					at.depends = append(at.depends, names...)
				}
			}
			continue
		}
		switch {
		case word == "":
		case in == 0:
			at = nil
			if cond, ok := strings.CutPrefix(text, "if "); ok {
				around = append(around, symbolName.FindAllString(cond, -1))
			} else if (text == "endif" || strings.HasPrefix(text, "endif ")) && len(around) > 0 {
				around = around[:len(around)-1]
			}
		case word == "help" || word == "---help---":
			help, deep = true, 0
		case at == nil:
		case promptLine.MatchString(text):
			at.prompt = true
		case strings.HasPrefix(word, "depends on "):
			cond := strings.TrimPrefix(word, "depends on ")
			at.depends = append(at.depends, symbolName.FindAllString(cond, -1)...)
			at.modules = at.modules || cond == "m"
		}
	}
}

// why says why an option is likely not as it was wanted.
func (o option) why(s *symbol, final map[string]string) string {
	have := final[o.name]
	switch {
	case s == nil:
		return "this version has no such option"
	case o.value == "n":
		return "another option needs it"
	case s.modules || o.value == "m" && final["CONFIG_MODULES"] != "y":
		return "it can be a module only, or wants to be one, and the kernel is built without"
	}
	var off []string
	for _, d := range s.depends {
		if v := final["CONFIG_"+d]; (v == "" || v == "n") && d != strings.TrimPrefix(o.name, "CONFIG_") && !slices.Contains(off, "CONFIG_"+d) {
			off = append(off, "CONFIG_"+d)
		}
	}
	switch {
	case have == "" && len(off) > 0:
		return "it depends on " + strings.Join(off[:min(len(off), 5)], ", ") + ", not all of which are set"
	case have == "" && !s.prompt:
		return "it cannot be set directly: options that need it do"
	case have != "":
		return "it became " + have
	}
	return "the build turned it off"
}

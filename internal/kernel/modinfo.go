package kernel

import (
	"bytes"
	"debug/elf"
	"strings"

	"github.com/mvmctl/mvm"
)

// ParseModule reads the .modinfo section of a kernel module (a .ko file, not
// compressed): name, depends, softdep and alias. Path stays empty.
func ParseModule(data []byte) (Module, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return Module{}, mvm.Errorf(mvm.ErrInvalid, "it is no kernel module: %w", err).WithHint("pull the kernel again")
	}
	section := f.Section(".modinfo")
	if f.Type != elf.ET_REL || section == nil || section.Type != elf.SHT_PROGBITS {
		return Module{}, mvm.Errorf(mvm.ErrInvalid, "it is no kernel module: it has no .modinfo section").WithHint("pull the kernel again")
	}
	info, err := section.Data()
	if err != nil {
		return Module{}, mvm.Errorf(mvm.ErrInvalid, "its .modinfo section is damaged: %w", err).WithHint("pull the kernel again")
	}
	return parseModinfo(info), nil
}

// parseModinfo reads strings "key=value" that end in a zero byte each.
func parseModinfo(info []byte) Module {
	var m Module
	for field := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "name":
			m.Name = strings.ReplaceAll(value, "-", "_")
		case "alias":
			m.Aliases = append(m.Aliases, value)
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					m.Depends = append(m.Depends, strings.ReplaceAll(d, "-", "_"))
				}
			}
		case "softdep":
			m.Soft = append(m.Soft, softPre(value)...)
		}
	}
	return m
}

// softPre returns what "pre: a b post: c" wants before the module.
func softPre(value string) []string {
	var names []string
	pre := false
	for word := range strings.FieldsSeq(value) {
		switch {
		case word == "pre:" || word == "post:":
			pre = word == "pre:"
		case pre:
			names = append(names, word)
		}
	}
	return names
}

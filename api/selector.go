package api

import (
	"path/filepath"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/key"
)

// candidate is an object that a selector may mean: keys holds, from the most to the
// least binding, the lists of strings that name it exactly; id may be shortened.
type candidate[T any] struct {
	item  T
	label string // how it is called in messages
	exact [][]string
	id    string
}

// minIDPrefix is how many characters of an id are enough.
const minIDPrefix = 4

// pick finds the one candidate that a selector means. The first rank of exact
// names that matches anything decides; an id prefix comes last. what is the
// kind of object in messages, next the command that lists or makes some.
func pick[T any](what, selector, next string, all []candidate[T]) (T, error) {
	var zero T
	ranks := 0
	for _, c := range all {
		ranks = max(ranks, len(c.exact))
	}
	matchers := make([]func(candidate[T]) bool, 0, ranks+1)
	for r := range ranks {
		matchers = append(matchers, func(c candidate[T]) bool {
			for _, name := range at(c.exact, r) {
				if name != "" && name == selector {
					return true
				}
			}
			return false
		})
	}
	matchers = append(matchers, func(c candidate[T]) bool {
		return len(selector) >= minIDPrefix && strings.HasPrefix(c.id, strings.ToLower(selector))
	})
	for _, match := range matchers {
		var found []candidate[T]
		for _, c := range all {
			if match(c) {
				found = append(found, c)
			}
		}
		switch {
		case len(found) == 1:
			return found[0].item, nil
		case len(found) > 1:
			var labels []string
			for _, c := range found {
				labels = append(labels, c.label+" ("+short(c.id)+")")
			}
			return zero, mvm.Errorf(mvm.ErrAmbiguous, "%s %s may mean %s", what, mvm.Quote(selector), strings.Join(labels, ", ")).
				WithHint("name it by more of its id")
		}
	}
	return zero, notFound(what, selector, next, all)
}

func notFound[T any](what, selector, next string, all []candidate[T]) error {
	var names []string
	for _, c := range all {
		for _, rank := range c.exact {
			names = append(names, rank...)
		}
	}
	e := mvm.Errorf(mvm.ErrNotFound, "there is no %s %s", what, mvm.Quote(selector))
	if near := mvm.Nearest(selector, names); len(near) > 0 {
		return e.WithHint("did you mean %s?", strings.Join(near, " or "))
	}
	if len(all) > 0 && len(all) <= fewEnoughToList {
		var labels []string
		for _, c := range all {
			labels = append(labels, c.label)
		}
		return e.WithHint("there is %s; %s", strings.Join(labels, ", "), next)
	}
	return e.WithHint("%s", next)
}

// fewEnoughToList is how many objects a hint names when none is near what was typed.
const fewEnoughToList = 4

func at(ranks [][]string, i int) []string {
	if i < len(ranks) {
		return ranks[i]
	}
	return nil
}

// short is an id as it is shown.
func short(id string) string { return id[:min(len(id), 12)] }

func vmCandidates(vms []*mvm.VMInstanceItem) []candidate[*mvm.VMInstanceItem] {
	out := make([]candidate[*mvm.VMInstanceItem], 0, len(vms))
	for _, v := range vms {
		out = append(out, candidate[*mvm.VMInstanceItem]{v, v.Name, [][]string{{v.Name}, {v.IPv4}, {v.MAC, strings.ToLower(v.MAC), strings.ToUpper(v.MAC)}}, v.ID})
	}
	return out
}

func networkCandidates(nets []*mvm.NetworkItem) []candidate[*mvm.NetworkItem] {
	out := make([]candidate[*mvm.NetworkItem], 0, len(nets))
	for _, n := range nets {
		out = append(out, candidate[*mvm.NetworkItem]{n, n.Name, [][]string{{n.Name}}, n.ID})
	}
	return out
}

// newestOf keeps, of items listed newest first, the first of each type.
func newestOf(types []string) map[int]bool {
	seen, newest := map[string]bool{}, map[int]bool{}
	for i, t := range types {
		if !seen[t] {
			seen[t], newest[i] = true, true
		}
	}
	return newest
}

// imageCandidates expects the images newest first.
func imageCandidates(images []*mvm.ImageItem) []candidate[*mvm.ImageItem] {
	types := make([]string, len(images))
	for i, im := range images {
		types[i] = im.Type
	}
	newest := newestOf(types)
	out := make([]candidate[*mvm.ImageItem], 0, len(images))
	for i, im := range images {
		c := candidate[*mvm.ImageItem]{im, im.Type + ":" + im.Version, [][]string{{im.Type + ":" + im.Version}, nil, {im.Name}}, im.ID}
		if newest[i] {
			c.exact[1] = []string{im.Type}
		}
		out = append(out, c)
	}
	return out
}

// kernelCandidates expects the kernels newest first.
func kernelCandidates(kernels []*mvm.KernelItem, p paths) []candidate[*mvm.KernelItem] {
	types := make([]string, len(kernels))
	for i, k := range kernels {
		types[i] = k.Type
	}
	newest := newestOf(types)
	out := make([]candidate[*mvm.KernelItem], 0, len(kernels))
	for i, k := range kernels {
		c := candidate[*mvm.KernelItem]{k, k.Type + ":" + k.Version, [][]string{{k.Type + ":" + k.Version, k.Name}, {p.abs(k.Path)}, nil, {k.Path, filepath.Base(k.Path)}}, k.ID}
		if newest[i] {
			c.exact[2] = []string{k.Type}
		}
		out = append(out, c)
	}
	return out
}

// keyCandidates lets the selector be the beginning of a fingerprint, with or
// without its "SHA256:".
func keyCandidates(keys []*mvm.SSHKeyItem, selector string) []candidate[*mvm.SSHKeyItem] {
	const algorithm = "SHA256:"
	typed := strings.TrimPrefix(selector, algorithm)
	out := make([]candidate[*mvm.SSHKeyItem], 0, len(keys))
	for _, k := range keys {
		short := strings.TrimPrefix(k.Fingerprint, algorithm)
		prints := []string{k.Fingerprint, short}
		if len(typed) >= minIDPrefix && strings.HasPrefix(short, typed) {
			prints = append(prints, selector)
		}
		out = append(out, candidate[*mvm.SSHKeyItem]{k, k.Name, [][]string{{k.Name}, prints, {k.PublicKeyPath}}, k.ID})
	}
	return out
}

// pickKey finds the key that a selector means: a name, the beginning of a
// fingerprint, or the path of a .pub file, which may be any copy of the key.
func pickKey(selector, next string, keys []*mvm.SSHKeyItem) (*mvm.SSHKeyItem, error) {
	if strings.HasSuffix(selector, ".pub") {
		if public, err := key.LoadPublic(selector); err == nil {
			selector = public.Fingerprint()
		}
	}
	return pick("key", selector, next, keyCandidates(keys, selector))
}

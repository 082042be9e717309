package cloudinit

import (
	"errors"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v4"
)

// Values of cloud-config are handled as trees of YAML nodes, never as Go values:
// cloud-init reads YAML 1.1, where yes is true and 0644 is octal, and a value that
// is passed on as it was written means there what its author meant.

func plain(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

// text is a string that no version of YAML takes for anything else.
func text(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Style: yaml.DoubleQuotedStyle}
}

func yes() *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "true"} }
func no() *yaml.Node  { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "false"} }

func list(items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: items}
}

// mapping makes a mapping of keys (string) and values (*yaml.Node) that alternate.
func mapping(pairs ...any) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i+1 < len(pairs); i += 2 {
		add(m, pairs[i].(string), pairs[i+1].(*yaml.Node))
	}
	return m
}

func add(m *yaml.Node, key string, value *yaml.Node) {
	m.Content = append(m.Content, plain(key), value)
}

// get returns the value of a key, nil if there is none.
func get(m *yaml.Node, key string) *yaml.Node {
	if i := index(m, key); i >= 0 {
		return m.Content[i+1]
	}
	return nil
}

func index(m *yaml.Node, key string) int {
	if m.Kind != yaml.MappingNode {
		return -1
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return i
		}
	}
	return -1
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// same compares trees by what they say.
func same(a, b *yaml.Node) bool {
	return a.Kind == b.Kind && a.Value == b.Value && a.ShortTag() == b.ShortTag() && slices.EqualFunc(a.Content, b.Content, same)
}

func clone(n *yaml.Node) *yaml.Node {
	out := *n
	out.Content = make([]*yaml.Node, 0, len(n.Content))
	for _, c := range n.Content {
		out.Content = append(out.Content, clone(c))
	}
	return &out
}

// lineError is what is wrong in a line of a document; line is 0 for the whole.
type lineError struct {
	line int
	text string
}

func (e *lineError) Error() string {
	if e.line == 0 {
		return e.text
	}
	return fmt.Sprintf("line %d: %s", e.line, e.text)
}

func wrong(n *yaml.Node, format string, args ...any) error {
	return &lineError{n.Line, fmt.Sprintf(format, args...)}
}

// Bounds for a document: its aliases may not multiply it to more values than
// maxNodes, and nothing sits deeper than maxDepth.
const (
	maxNodes = 100_000
	maxDepth = 100
)

// parseConfig reads a cloud-config into a tree that has no anchors, aliases, merge
// keys and comments. A key that is there twice is an error: cloud-init would drop
// one of the two.
func parseConfig(data []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Load(data, &doc); err != nil {
		return nil, yamlError(err)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, &lineError{0, "it holds no document"}
	}
	e := expander{left: maxNodes}
	root, err := e.expand(doc.Content[0], 0)
	if err != nil {
		return nil, err
	}
	if root.Kind != yaml.MappingNode {
		return nil, wrong(root, "a cloud-config is a list of keys and values")
	}
	return root, nil
}

// yamlError takes the line out of what the reader says.
func yamlError(err error) error {
	var all *yaml.LoadErrors
	if errors.As(err, &all) && len(all.Errors) > 0 {
		return &lineError{all.Errors[0].Mark.Line, all.Errors[0].Message}
	}
	var one *yaml.LoadError
	if errors.As(err, &one) {
		if one.ContextMsg != "" && one.ContextMark.Line > 0 {
			return &lineError{one.Mark.Line, fmt.Sprintf("%s (%s that begins in line %d)", one.Message, one.ContextMsg, one.ContextMark.Line)}
		}
		return &lineError{one.Mark.Line, one.Message}
	}
	return &lineError{0, err.Error()}
}

// knownTags are those of YAML itself; cloud-init refuses others.
var knownTags = []string{"!!str", "!!int", "!!float", "!!bool", "!!null", "!!map", "!!seq", "!!binary", "!!timestamp", "!!merge"}

// expander copies trees; left is how many nodes it may still make.
type expander struct{ left int }

func (e *expander) expand(n *yaml.Node, depth int) (*yaml.Node, error) {
	if e.left--; e.left < 0 || depth > maxDepth {
		return nil, wrong(n, "there is too much below this")
	}
	if n.Kind == yaml.AliasNode {
		return e.expand(n.Alias, depth+1)
	}
	if !slices.Contains(knownTags, n.ShortTag()) {
		return nil, wrong(n, "cloud-init does not know the tag %s", n.ShortTag())
	}
	out := &yaml.Node{Kind: n.Kind, Style: n.Style, Tag: n.Tag, Value: n.Value, Line: n.Line}
	if out.Style&yaml.FoldedStyle != 0 {
		out.Style = yaml.DoubleQuotedStyle // folding has been done
	}
	if n.Kind == yaml.MappingNode {
		return out, e.expandMapping(n, out, depth)
	}
	for _, c := range n.Content {
		item, err := e.expand(c, depth+1)
		if err != nil {
			return nil, err
		}
		out.Content = append(out.Content, item)
	}
	return out, nil
}

// expandMapping copies keys and values. What is merged in (<<) yields to the
// mapping's own keys, and to what was merged in before.
func (e *expander) expandMapping(n, out *yaml.Node, depth int) error {
	var merged []*yaml.Node
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, err := e.expand(n.Content[i], depth+1)
		if err != nil {
			return err
		}
		if key.Kind != yaml.ScalarNode {
			return wrong(n.Content[i], "a key is a list or a mapping")
		}
		value, err := e.expand(n.Content[i+1], depth+1)
		if err != nil {
			return err
		}
		if key.ShortTag() == "!!merge" {
			if value.Kind == yaml.MappingNode {
				value = list(value)
			}
			merged = append(merged, value.Content...)
			continue
		}
		if seen[key.Value] {
			return wrong(key, "the key %s is there twice", quoteKey(key.Value))
		}
		seen[key.Value] = true
		out.Content = append(out.Content, key, value)
	}
	for _, m := range merged {
		if m.Kind != yaml.MappingNode {
			return wrong(n, "only mappings can be merged in with <<")
		}
		for i := 0; i+1 < len(m.Content); i += 2 {
			if key := m.Content[i].Value; !seen[key] {
				seen[key] = true
				out.Content = append(out.Content, m.Content[i], m.Content[i+1])
			}
		}
	}
	return nil
}

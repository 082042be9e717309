package render

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Node is one line of a tree and what stands below it.
type Node struct {
	Label    string
	Value    string
	Children []Node
}

// Tree prints a title line and, below it, the branches.
func (o *Output) Tree(title string, nodes []Node) error {
	var b strings.Builder
	b.WriteString(ToneTitle.paint(Clean(title), o.OutColour) + "\n")
	branches(&b, "", nodes)
	return o.write(b.String())
}

func branches(b *strings.Builder, indent string, nodes []Node) {
	for i, n := range nodes {
		mark, below := "├─ ", "│  "
		if i == len(nodes)-1 {
			mark, below = "└─ ", "   "
		}
		b.WriteString(indent + mark + Clean(n.Label))
		if n.Value != "" {
			if n.Label != "" {
				b.WriteString(": ")
			}
			b.WriteString(Clean(n.Value))
		}
		b.WriteByte('\n')
		branches(b, indent+below, n.Children)
	}
}

// Nodes turns v, by way of its JSON, into branches: the same words in the same
// order as --json, made readable. Null and empty values are left out.
func (o *Output) Nodes(v any) ([]Node, error) {
	b, err := encode(v)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	n, err := o.node(dec, "")
	return n.Children, err
}

// node reads the next value. A node without value and children is empty.
func (o *Output) node(dec *json.Decoder, key string) (Node, error) {
	tok, err := dec.Token()
	if err != nil {
		return Node{}, err
	}
	n := Node{Label: label(key)}
	switch t := tok.(type) {
	case json.Delim:
		if t == '{' {
			return n, o.object(dec, &n)
		}
		return n, o.array(dec, key, &n)
	case string:
		n.Value = o.text(key, t)
	case json.Number:
		n.Value = number(key, t)
	case bool:
		n.Value = map[bool]string{true: "yes", false: "no"}[t]
	}
	return n, nil
}

func (o *Output) object(dec *json.Decoder, n *Node) error {
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		child, err := o.node(dec, key.(string))
		if err != nil {
			return err
		}
		if child.Value != "" || len(child.Children) > 0 {
			n.Children = append(n.Children, child)
		}
	}
	_, err := dec.Token()
	return err
}

// array puts plain values on one line and gives objects a branch each.
func (o *Output) array(dec *json.Decoder, key string, n *Node) error {
	var plain []string
	for dec.More() {
		child, err := o.node(dec, key)
		if err != nil {
			return err
		}
		if len(child.Children) == 0 {
			plain = append(plain, child.Value)
			continue
		}
		child.Label, child.Value = headline(child.Children), ""
		n.Children = append(n.Children, child)
	}
	n.Value = strings.Join(plain, ", ")
	_, err := dec.Token()
	return err
}

// headline names an element of an array by its first field, which says what it is.
func headline(children []Node) string {
	return children[0].Label + " " + children[0].Value
}

func (o *Output) text(key, s string) string {
	if strings.HasSuffix(key, "_at") || key == "at" {
		if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
			return t.UTC().Format("2006-01-02 15:04:05 UTC") + " (" + o.Age(s) + " ago)"
		}
	}
	return s
}

func number(key string, n json.Number) string {
	i, err := n.Int64()
	if err != nil {
		if f, err := n.Float64(); err == nil {
			return strconv.FormatFloat(f, 'f', 2, 64)
		}
		return n.String()
	}
	switch {
	case strings.HasSuffix(key, "_bytes"), strings.HasSuffix(key, "-size"), // the latter as qemu-img writes it
		key == "original_size", key == "compressed_size":
		return Size(i) + " (" + n.String() + " bytes)"
	case strings.HasSuffix(key, "_mib"):
		return n.String() + " MiB"
	case strings.HasSuffix(key, "_sec"):
		return Took(time.Duration(i) * time.Second)
	case i == 0 && (key == "pid" || strings.HasSuffix(key, "_pid")):
		return "none"
	}
	return strconv.FormatInt(i, 10)
}

var acronyms = []string{"id", "pid", "mac", "vm", "vms", "api", "pci", "vcpu", "cpu", "dns", "ssh", "nat", "lsm", "kvm", "vmm", "fs", "uuid"}

// label makes "mem_size_mib" into "mem size": units stand behind the value.
func label(key string) string {
	for _, unit := range []string{"_bytes", "_mib", "_sec"} {
		key = strings.TrimSuffix(key, unit)
	}
	words := strings.FieldsFunc(key, func(r rune) bool { return r == '_' || r == '-' })
	for i, w := range words {
		switch {
		case slices.Contains(acronyms, w):
			words[i] = strings.ToUpper(w)
			if w == "vms" {
				words[i] = "VMs"
			}
		case w == "ids":
			words[i] = "IDs"
		case w == "ipv4":
			words[i] = "IPv4"
		}
	}
	return strings.Join(words, " ")
}

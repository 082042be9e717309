package cloudinit

import (
	"go.yaml.in/yaml/v4"

	"github.com/mvmctl/mvm"
)

// merge merges a user's cloud-config into ours and changes neither: mappings key
// by key, lists ours first and then theirs without what is in both, users by name;
// of two single values theirs wins. An empty value of theirs leaves our lists and
// mappings as they are.
func merge(ours, theirs *yaml.Node) *yaml.Node {
	out := *ours
	out.Content = nil
	for i := 0; i+1 < len(ours.Content); i += 2 {
		key, value := ours.Content[i], ours.Content[i+1]
		if their := get(theirs, key.Value); their != nil {
			value = mergeValue(key.Value, value, their)
		}
		out.Content = append(out.Content, key, value)
	}
	for i := 0; i+1 < len(theirs.Content); i += 2 {
		if index(ours, theirs.Content[i].Value) < 0 {
			out.Content = append(out.Content, theirs.Content[i], theirs.Content[i+1])
		}
	}
	return &out
}

func mergeValue(key string, ours, theirs *yaml.Node) *yaml.Node {
	switch {
	case isNull(theirs) && ours.Kind != yaml.ScalarNode:
		return ours
	case ours.Kind == yaml.MappingNode && theirs.Kind == yaml.MappingNode:
		return merge(ours, theirs)
	case ours.Kind == yaml.SequenceNode && theirs.Kind == yaml.SequenceNode:
		return mergeLists(key, ours, theirs)
	case key == "ssh_authorized_keys" && ours.Kind == yaml.SequenceNode && theirs.Kind == yaml.ScalarNode:
		return mergeLists(key, ours, list(theirs)) // of one user it may be a single string
	}
	return theirs
}

func mergeLists(key string, ours, theirs *yaml.Node) *yaml.Node {
	out := list()
	used := make([]bool, len(theirs.Content))
	for _, item := range ours.Content {
		for i, their := range theirs.Content {
			switch {
			case used[i]:
			case same(item, their):
				used[i] = true
			case key == "users" && userName(item) != "" && userName(item) == userName(their):
				used[i] = true
				if item.Kind == yaml.MappingNode && their.Kind == yaml.MappingNode {
					item = merge(item, their)
				}
			}
		}
		out.Content = append(out.Content, item)
	}
	for i, their := range theirs.Content {
		if !used[i] {
			out.Content = append(out.Content, their)
		}
	}
	return out
}

// userName is whom an entry of users is about: a mapping with a name, or the name
// alone.
func userName(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return n.Value
	}
	if name := get(n, "name"); name != nil {
		return name.Value
	}
	return ""
}

// kinds is what the values of common keys have to be. cloud-init itself would log
// an error in the guest and go on without.
var kinds = map[string]yaml.Kind{
	"hostname": yaml.ScalarNode, "fqdn": yaml.ScalarNode, "disable_root": yaml.ScalarNode, "ssh_pwauth": yaml.ScalarNode, "ssh_deletekeys": yaml.ScalarNode,
	"users": yaml.SequenceNode, "ssh_authorized_keys": yaml.SequenceNode, "ssh_genkeytypes": yaml.SequenceNode,
	"bootcmd": yaml.SequenceNode, "runcmd": yaml.SequenceNode, "packages": yaml.SequenceNode, "write_files": yaml.SequenceNode, "mounts": yaml.SequenceNode,
}

var kindNames = map[yaml.Kind]string{yaml.ScalarNode: "a single value", yaml.SequenceNode: "a list", yaml.MappingNode: "a mapping"}

// checkConfig refuses what cannot be merged, and what cloud-init would drop.
func checkConfig(c *yaml.Node) error {
	for i := 0; i+1 < len(c.Content); i += 2 {
		key, value := c.Content[i], c.Content[i+1]
		if want := kinds[key.Value]; want != 0 && value.Kind != want && !isNull(value) {
			return wrong(value, "%s has to be %s, and this is %s", key.Value, kindNames[want], kindNames[value.Kind])
		}
	}
	if users := get(c, "users"); users != nil {
		for _, item := range users.Content {
			if isNull(item) || item.Kind != yaml.ScalarNode && userName(item) == "" && get(item, "snapuser") == nil {
				return wrong(item, "an entry of users has no name")
			}
		}
	}
	if files := get(c, "write_files"); files != nil {
		for _, item := range files.Content {
			if path := get(item, "path"); path == nil || path.Value == "" {
				return wrong(item, "an entry of write_files has no path")
			}
		}
	}
	return nil
}

// quoteKey quotes what stands in a document, not all of it where it is long.
func quoteKey(s string) string {
	const most = 40
	r := []rune(s)
	return mvm.Quote(string(r[:min(len(r), most)]))
}

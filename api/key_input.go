package api

import "github.com/mvmctl/mvm"

// KeyAddInput is a public key to take over.
type KeyAddInput struct {
	Name          string
	PublicKeyPath string // a .pub file; it is copied
	Overwrite     bool   // replace the key of that name
	SetDefault    bool   // also give it to every new VM
}

// KeyInspect is all there is to know of a key.
type KeyInspect struct {
	Key        *mvm.SSHKeyItem `json:"key"`
	Files      KeyFiles        `json:"files"`
	VMs        []string        `json:"vms"` // that were created with it
	Timestamps KeyTimestamps   `json:"timestamps"`
}

// KeyFiles are a key's files, and what the public one says.
type KeyFiles struct {
	PublicKeyPath    string  `json:"public_key_path"`
	PublicKeyExists  bool    `json:"public_key_exists"`
	PrivateKeyPath   *string `json:"private_key_path"` // null when only the public half is known here
	PrivateKeyExists bool    `json:"private_key_exists"`
	PublicKey        string  `json:"public_key"` // its line; "" when it cannot be read
	Bits             int     `json:"bits"`       // 0 when it cannot be read
}

// KeyTimestamps say when a key was registered and changed.
type KeyTimestamps struct {
	CreatedAt string `json:"created_at"`
	UpdatedAt string `json:"updated_at"`
}

// KeyExport says where a key's halves were written.
type KeyExport struct {
	PublicKeyPath  string  `json:"public_key_path"`
	PrivateKeyPath *string `json:"private_key_path"` // null when the private half is not here
}

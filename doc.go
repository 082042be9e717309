// Package mvm is the vocabulary of the microVM manager: the items that are
// stored and listed (VMInstanceItem, NetworkItem, ImageItem, …), the phases a VM
// goes through and which verb may move it where, validation of what users
// type, and the kinds of error that callers can match.
//
// It does no input or output and imports the standard library only. Programs
// that want to do something with VMs import the api package, which speaks in
// these words.
package mvm

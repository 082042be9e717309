package boot

import "testing"

func TestGuessPowerOff(t *testing.T) {
	for cmdline, want := range map[string]string{
		"console=ttyS0 reboot=k panic=1\n": "reboot",
		"console=ttyS0 quiet\n":            "acpi",
		"":                                 "acpi",
		"noreboot=k":                       "acpi",
	} {
		if got := guessPowerOff(cmdline); got != want {
			t.Errorf("guessPowerOff(%q) = %q, want %q", cmdline, got, want)
		}
	}
}

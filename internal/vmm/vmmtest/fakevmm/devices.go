package fakevmm

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

func (m *machine) onBalloon(method, path string, body []byte) (any, error) {
	b := m.config.Balloon
	stats := strings.HasSuffix(path, "/statistics")
	switch {
	case b == nil && method == "PATCH":
		return nil, refusal("Balloon update error: Failed perform action on device: Device not found")
	case b == nil:
		return nil, noDevice
	case method == "PATCH" && stats:
		var change struct {
			Interval int `json:"stats_polling_interval_s"`
		}
		if err := json.Unmarshal(body, &change); err != nil {
			return nil, err
		}
		if (b.Interval == 0) != (change.Interval == 0) {
			return nil, refusal("Balloon update error: Balloon: Statistics cannot be enabled/disabled after activation.")
		}
		b.Interval = change.Interval
		return nil, nil
	case method == "PATCH":
		return nil, m.setBalloon(body)
	case !stats:
		return b, nil
	case b.Interval == 0:
		return nil, refusal("Internal VMM error: Balloon: Received stats query when stats are disabled.")
	}
	return m.balloonStats(), nil
}

func (m *machine) setBalloon(body []byte) error {
	var change struct {
		Amount int `json:"amount_mib"`
	}
	if err := json.Unmarshal(body, &change); err != nil {
		return err
	}
	switch {
	case change.Amount < 0:
		return refusal("An error occurred when deserializing the json body of a request: invalid value")
	case !m.guest.isUp():
		return refusal("Balloon update error: Balloon: Device not activated yet.")
	case change.Amount > m.config.Machine.Mem:
		return refusal(fmt.Sprintf("Balloon update error: Balloon: Requested memory should be less than %dMiB", change.Amount))
	}
	m.balloon, m.config.Balloon.Amount = change.Amount, change.Amount
	return nil
}

// balloonStats are those of a guest that does as it is asked, as soon as it is up.
func (m *machine) balloonStats() map[string]int64 {
	target := int64(m.balloon)
	s := map[string]int64{"target_mib": target, "target_pages": target * 256, "actual_mib": 0, "actual_pages": 0}
	if m.guest.isUp() {
		total := int64(m.config.Machine.Mem) << 20
		s["actual_mib"], s["actual_pages"] = target, target*256
		s["total_memory"], s["free_memory"], s["available_memory"] = total, total-target<<20, total-target<<20
	}
	return s
}

func (m *machine) drive(id string) int {
	return slices.IndexFunc(m.config.Drives, func(d drive) bool { return d.ID == id })
}

func (m *machine) updateDrive(body []byte) error {
	var d drive
	if err := json.Unmarshal(body, &d); err != nil {
		return err
	}
	i := m.drive(d.ID)
	if i < 0 {
		return refusal("Drive config error: Unable to patch the block device: Failed perform action on device: Device not found Please verify the request arguments.")
	}
	have := &m.config.Drives[i]
	if d.Path != "" {
		d.ReadOnly = have.ReadOnly
		if err := d.check(); err != nil {
			return refusal("Drive config error: Unable to patch the block device: " + err.Error())
		}
		have.Path = d.Path
	}
	have.Limiter = have.Limiter.patch(d.Limiter)
	return nil
}

func (m *machine) addDrive(body []byte) error {
	var d drive
	if err := json.Unmarshal(body, &d); err != nil {
		return err
	}
	switch {
	case !m.pci:
		return noPCI
	case m.drive(d.ID) >= 0:
		return refusal("Device ID in use")
	case d.Root:
		return refusal("Drive config error: A root block device already exists!")
	}
	if err := d.open(); err != nil {
		return refusal("Drive config error: Unable to create the virtio block device: " + err.Error())
	}
	m.config.Drives = append(m.config.Drives, d)
	if m.unplugged {
		m.astray = append(m.astray, d.ID)
	}
	return nil
}

// removeDrive does not ask the guest.
func (m *machine) removeDrive(id string) error {
	i := m.drive(id)
	switch {
	case !m.pci:
		return noPCI
	case i < 0:
		return refusal("Device not found")
	case m.config.Drives[i].Root:
		return refusal("Cannot unplug root device")
	}
	m.config.Drives = slices.Delete(m.config.Drives, i, i+1)
	m.astray = slices.DeleteFunc(m.astray, func(astray string) bool { return astray == id })
	m.unplugged = true
	return nil
}

func (m *machine) updateNIC(body []byte) error {
	var n nic
	if err := json.Unmarshal(body, &n); err != nil {
		return err
	}
	i := slices.IndexFunc(m.config.NICs, func(have nic) bool { return have.ID == n.ID })
	if i < 0 {
		return refusal("Network config error: Unable to update the net device: Failed perform action on device: Device not found")
	}
	have := &m.config.NICs[i]
	have.RX, have.TX = have.RX.patch(n.RX), have.TX.patch(n.TX)
	return nil
}

const noStore = refusal("MMDS error: The MMDS data store is not initialized.")

// metadata is what the service holds. An empty one is answered with {}.
func (m *machine) metadata() any {
	if m.store == nil {
		return map[string]any{}
	}
	return m.store
}

func (m *machine) putMetadata(data []byte) error {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	compact, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(compact) > maxBody {
		return tooLarge
	}
	m.store = v
	return nil
}

// setMetadata needs a service, which is there only where it was configured before
// the boot.
func (m *machine) setMetadata(method, path string, body []byte) error {
	switch {
	case strings.HasSuffix(path, "/config"):
		return postBoot
	case m.config.MMDS == nil, method == "PATCH" && m.store == nil:
		return noStore
	case method == "PUT":
		return m.putMetadata(body)
	}
	var change any
	if err := json.Unmarshal(body, &change); err != nil {
		return err
	}
	m.store = merge(m.store, change)
	return nil
}

// merge is RFC 7396.
func merge(to, change any) any {
	c, ok := change.(map[string]any)
	if !ok {
		return change
	}
	t, ok := to.(map[string]any)
	if !ok {
		t = map[string]any{}
	}
	for k, v := range c {
		if v == nil {
			delete(t, k)
		} else {
			t[k] = merge(t[k], v)
		}
	}
	return t
}

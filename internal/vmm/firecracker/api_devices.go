package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/mvmctl/mvm"
)

// UpdateDrive changes the file or the rate limit behind a drive.
func (c *Client) UpdateDrive(ctx context.Context, u DriveUpdate) error {
	if err := checkID(u.ID); err != nil {
		return err
	}
	return c.do(ctx, http.MethodPatch, "/drives/"+u.ID, u, nil)
}

// AddDrive plugs a drive into a running VM, which needs PCI. The guest gets no
// notice and has to rescan its PCI bus (docs/device-hotplug.md).
func (c *Client) AddDrive(ctx context.Context, d Drive) error {
	if err := checkID(d.ID); err != nil {
		return err
	}
	return c.do(ctx, http.MethodPut, "/drives/"+d.ID, d, nil)
}

// RemoveDrive pulls a drive out of a running VM, whose guest is not asked. The
// OpenAPI description lacks it (docs/device-hotplug.md has it).
func (c *Client) RemoveDrive(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, "/drives/"+id, nil, nil)
}

// UpdateNetwork changes the rate limits of an interface.
func (c *Client) UpdateNetwork(ctx context.Context, u NetworkUpdate) error {
	if err := checkID(u.ID); err != nil {
		return err
	}
	return c.do(ctx, http.MethodPatch, "/network-interfaces/"+u.ID, u, nil)
}

// Balloon asks for the balloon's configuration. A VM without one gives
// ErrConflict.
func (c *Client) Balloon(ctx context.Context) (Balloon, error) {
	var b Balloon
	return b, c.do(ctx, http.MethodGet, "/balloon", nil, &b)
}

// SetBalloon changes the balloon's target, in MiB.
func (c *Client) SetBalloon(ctx context.Context, mib int) error {
	return c.do(ctx, http.MethodPatch, "/balloon", struct {
		Amount int `json:"amount_mib"`
	}{mib}, nil)
}

// BalloonStats asks for the balloon's statistics. Memory that the guest has not told
// of is -1.
func (c *Client) BalloonStats(ctx context.Context) (BalloonStats, error) {
	s := BalloonStats{FreeMemory: -1, TotalMemory: -1, AvailableMemory: -1, DiskCaches: -1}
	return s, c.do(ctx, http.MethodGet, "/balloon/statistics", nil, &s)
}

// SetBalloonStats changes how often, in seconds, statistics are taken. They
// cannot be turned on or off in a running VM.
func (c *Client) SetBalloonStats(ctx context.Context, seconds int) error {
	return c.do(ctx, http.MethodPatch, "/balloon/statistics", struct {
		Interval int `json:"stats_polling_interval_s"`
	}{seconds}, nil)
}

// Metadata asks for what the metadata service holds.
func (c *Client) Metadata(ctx context.Context) (json.RawMessage, error) {
	var raw json.RawMessage
	return raw, c.do(ctx, http.MethodGet, "/mmds", nil, &raw)
}

// SetMetadata replaces what the metadata service holds by a JSON object.
func (c *Client) SetMetadata(ctx context.Context, data json.RawMessage) error {
	if err := isObject(data); err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "the metadata: %w", err).WithHint("metadata is one JSON object")
	}
	return c.do(ctx, http.MethodPut, "/mmds", data, nil)
}

// PatchMetadata merges a JSON object into the metadata (RFC 7396).
func (c *Client) PatchMetadata(ctx context.Context, data json.RawMessage) error {
	if err := isObject(data); err != nil {
		return mvm.Errorf(mvm.ErrInvalid, "the metadata: %w", err).WithHint("metadata is one JSON object")
	}
	return c.do(ctx, http.MethodPatch, "/mmds", data, nil)
}

// isObject tells whether data is one JSON object.
func isObject(data []byte) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	if m == nil {
		return errors.New("null is no JSON object")
	}
	return nil
}

package guest

import (
	"context"

	"github.com/mvmctl/mvm/internal/guest/wire"
)

// TakeVolume has the guest find a disk, also one that was plugged in a moment ago,
// and mount it if v says where. It returns the disk's device. A guest that cannot
// gives mvm.ErrUnavailable with its reason.
func (c *Client) TakeVolume(ctx context.Context, v wire.Volume) (string, error) {
	var taken wire.VolumeTaken
	err := c.request(ctx, wire.ReqVolumeTake, SyncLimit, v, &taken)
	return clean(taken.Device), err
}

// ReleaseVolume has the guest unmount a disk and let go of it. What uses it in the
// guest is the reason of an mvm.ErrUnavailable.
func (c *Client) ReleaseVolume(ctx context.Context, v wire.VolumeRelease) error {
	return c.request(ctx, wire.ReqVolumeRelease, SyncLimit, v, nil)
}

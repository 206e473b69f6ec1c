package vhostabi

// Feature bits of the virtio device (VIRTIO 1.2, section 6) and the one that vhost-user adds.
const (
	FeatureNotifyOnEmpty    = 1 << 24
	FeatureLogAll           = 1 << 26 // VHOST_F_LOG_ALL
	FeatureIndirectDesc     = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx         = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureProtocolFeatures = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	FeatureVersion1         = 1 << 32 // VIRTIO_F_VERSION_1
	FeatureIOMMUPlatform    = 1 << 33
	FeatureRingPacked       = 1 << 34
	FeatureInOrder          = 1 << 35
	FeatureRingReset        = 1 << 40
)

// Flags of a descriptor (VIRTIO 1.2, section 2.7.5).
const (
	DescNext     = 1
	DescWrite    = 2
	DescIndirect = 4
)

// Flags of the avail and used rings (sections 2.7.6 and 2.7.8), and the sizes of what the rings are made of, in bytes.
const (
	AvailNoInterrupt = 1
	UsedNoNotify     = 1

	DescSize     = 16
	UsedElemSize = 8
	RingHeader   = 4 // flags and idx in front of avail.ring and used.ring
	RingEvent    = 2 // used_event behind avail.ring, avail_event behind used.ring

	// MaxRingSize is the largest number of descriptors of a split ring (section 2.7).
	MaxRingSize = 32768
)

// Alignment in bytes that a split ring's parts must have (section 2.7).
const (
	DescAlign  = 16
	AvailAlign = 2
	UsedAlign  = 4
)

// TagSize is the size in bytes of the mount tag in [FSConfig]; a shorter tag is padded with NULs, a tag of full size has none
// (VIRTIO 1.2, section 5.11.4).
const TagSize = 36

// FSConfig is the configuration space of the file system device, struct virtio_fs_config: TagSize bytes and a le32.
type FSConfig struct {
	Tag              string
	NumRequestQueues uint32
}

// FSConfigSize is the size of the encoded [FSConfig] in bytes.
const FSConfigSize = TagSize + 4

// AppendTo appends the encoded configuration space to b. A tag longer than TagSize is cut.
func (c FSConfig) AppendTo(b []byte) []byte {
	var tag [TagSize]byte
	copy(tag[:], c.Tag)
	b = append(b, tag[:]...)
	return le.AppendUint32(b, c.NumRequestQueues)
}

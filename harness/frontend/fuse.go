package frontend

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// RootNode is the share's root directory.
const RootNode = 1

// Sizes of headers and bodies on the wire, in bytes.
const (
	InHeaderSize  = 40
	OutHeaderSize = 16
	EntrySize     = 128
	AttrOutSize   = 104
	OpenOutSize   = 16
	InitOutSize   = 64
)

// InitFlagsLinux are the INIT flags that a Linux 6.12 guest offers on virtio-fs, without those for DAX and passthrough: all of
// bits 0 to 30 but FILE_OPS and MAP_ALIGNMENT, and SECURITY_CTX, CREATE_SUPP_GROUP, HAS_EXPIRE_ONLY, DIRECT_IO_ALLOW_MMAP,
// NO_EXPORT_SUPPORT, HAS_RESEND and ALLOW_IDMAP (fs/fuse/inode.c, fuse_new_init).
const InitFlagsLinux = (1<<31-1)&^(1<<2|1<<26) | 1<<32 | 1<<34 | 1<<35 | 1<<36 | 1<<38 | 1<<39 | 1<<40

// FUSE is a guest's FUSE client on one device. Like a Queue, it belongs to one goroutine at a time.
type FUSE struct {
	Device        *Device
	Queue         *Queue // for all but FORGET and INTERRUPT
	Framing       Framing
	UID, GID, PID uint32
	Timeout       time.Duration

	unique uint64
}

// NewFUSE makes a client on the first request queue, with Linux's framing, as root.
func NewFUSE(d *Device) *FUSE {
	return &FUSE{Device: d, Queue: d.Queues[1], Framing: LinuxFraming, PID: 1, Timeout: d.Timeout}
}

// On is the same client on another queue.
func (f *FUSE) On(q *Queue) *FUSE {
	c := *f
	c.Queue = q
	c.unique += 1 << 40 * uint64(1+q.Index)
	return &c
}

// As is the same client with another user.
func (f *FUSE) As(uid, gid uint32) *FUSE {
	c := *f
	c.UID, c.GID = uid, gid
	c.unique += 1 << 50
	return &c
}

// Request is what to send. Header fields are made from it; Len, if not nil, is what the header says instead of the truth.
type Request struct {
	Op      Opcode
	Node    uint64
	Args    []byte // body without file data
	Data    []byte // file data, behind the arguments
	Ext     []byte // extensions behind Data, a multiple of 8 bytes; ExtLen, if not nil, is what the header says
	Len     *uint32
	ExtLen  *uint16
	OutArgs int // room for the reply's fixed part, without its header
	OutData int // room for file data or names
	NoOut   bool
	Framing Framing // nil: the client's
}

// Reply is what came back.
type Reply struct {
	Error  unix.Errno // 0, or what the daemon answered
	Body   []byte     // behind the header; a copy
	Used   uint32     // used length of the ring element
	Len    uint32     // header's length
	Unique uint64
}

// ProtocolError says that a daemon's reply contradicts itself or its request.
type ProtocolError struct {
	Op   Opcode
	What string
}

// Error names the operation and the contradiction.
func (e *ProtocolError) Error() string { return fmt.Sprintf("reply to %v: %s", e.Op, e.What) }

// Pending is a request on its way.
type Pending struct {
	Request
	Chain  *Chain
	Unique uint64

	queue *Queue
	gpa   uint64
	size  int
	out   []Seg
}

// Layout is a request in guest memory, not yet on a ring.
type Layout struct {
	GPA     uint64
	Size    int
	In, Out []Seg
}

// Segs are all segments, readable ones first.
func (l Layout) Segs() []Seg { return append(append([]Seg(nil), l.In...), l.Out...) }

// Layout writes a request into guest memory and cuts it into segments that do not touch each other.
func (f *FUSE) Layout(r Request, unique uint64) (Layout, error) {
	framing := r.Framing
	if framing == nil {
		framing = f.Framing
	}
	head := make([]byte, InHeaderSize, InHeaderSize+len(r.Args)+len(r.Data)+len(r.Ext))
	total := uint32(InHeaderSize + len(r.Args) + len(r.Data) + len(r.Ext))
	if r.Len != nil {
		total = *r.Len
	}
	ext := uint16(len(r.Ext) / 8)
	if r.ExtLen != nil {
		ext = *r.ExtLen
	}
	le := binary.LittleEndian
	le.PutUint32(head[0:], total)
	le.PutUint32(head[4:], uint32(r.Op))
	le.PutUint64(head[8:], unique)
	le.PutUint64(head[16:], r.Node)
	le.PutUint32(head[24:], f.UID)
	le.PutUint32(head[28:], f.GID)
	le.PutUint32(head[32:], f.PID)
	le.PutUint16(head[36:], ext)
	bytes := append(append(append(head, r.Args...), r.Data...), r.Ext...)

	in := framing(Shape{InHeaderSize, len(r.Args) + len(r.Ext), len(r.Data)})
	if len(r.Ext) > 0 && len(r.Data) == 0 {
		in = framing(Shape{InHeaderSize, len(r.Args) + len(r.Ext), 0})
	}
	var out []int
	if !r.NoOut && !r.Op.NoReply() {
		out = framing(Shape{OutHeaderSize, r.OutArgs, r.OutData})
	}
	return f.Place(bytes, in, out)
}

// Place puts bytes into segments of the lengths in, and makes room for segments of the lengths out.
func (f *FUSE) Place(bytes []byte, in, out []int) (Layout, error) {
	at := func(pos uint64, n int) uint64 { // segments of a page are aligned as pages, others stand apart
		if n == PageSize {
			return (pos + PageSize - 1) &^ (PageSize - 1)
		}
		return (pos+63)&^63 + 64
	}
	var size uint64
	for _, cuts := range [2][]int{in, out} {
		for _, n := range cuts {
			size = at(size, n) + uint64(n)
		}
	}
	m := f.Device.Memory
	gpa, err := m.Alloc(int(size))
	if err != nil {
		return Layout{}, err
	}
	l := Layout{GPA: gpa, Size: int(size)}
	pos := gpa
	for _, n := range in {
		pos = at(pos, n)
		k := copy(m.Bytes(pos, n), bytes)
		bytes = bytes[k:]
		l.In = append(l.In, Seg{pos, uint32(n), false})
		pos += uint64(n)
	}
	for _, n := range out {
		pos = at(pos, n)
		clear(m.Bytes(pos, n))
		l.Out = append(l.Out, Seg{pos, uint32(n), true})
		pos += uint64(n)
	}
	return l, nil
}

// NextUnique is the unique of the next request, as Linux counts them.
func (f *FUSE) NextUnique() uint64 {
	f.unique += 2
	return f.unique
}

// Start posts a request and returns at once; Queue.Publish shows it to the device.
func (f *FUSE) Start(r Request) (*Pending, error) {
	q := f.Queue
	if r.Op == OpForget || r.Op == OpInterrupt {
		q = f.Device.Queues[0]
	}
	p := &Pending{Request: r, Unique: f.NextUnique(), queue: q}
	l, err := f.Layout(r, p.Unique)
	if err != nil {
		return nil, err
	}
	p.gpa, p.size, p.out = l.GPA, l.Size, l.Out
	if p.Chain, err = q.Prepare(l.Segs()); err != nil {
		f.Device.Memory.Free(l.GPA, l.Size)
		return nil, err
	}
	q.Post(p.Chain)
	return p, nil
}

// Finish waits for a request, decodes its reply and gives its memory back. After an error other than *ProtocolError the
// request may still be outstanding and its memory stays taken.
func (f *FUSE) Finish(p *Pending) (Reply, error) {
	if !p.Chain.Done {
		if err := p.queue.WaitChain(p.Chain, f.Timeout); err != nil {
			return Reply{}, fmt.Errorf("%v: %w", p.Op, err)
		}
	}
	reply, err := decodeReply(f.Device.Memory, p)
	p.queue.Release(p.Chain)
	f.Device.Memory.Free(p.gpa, p.size)
	return reply, err
}

// Do sends a request and waits for the reply. An errno is in Reply.Error, not in error.
func (f *FUSE) Do(r Request) (Reply, error) {
	p, err := f.Start(r)
	if err != nil {
		return Reply{}, err
	}
	p.queue.Publish()
	return f.Finish(p)
}

func decodeReply(m *Memory, p *Pending) (Reply, error) {
	bad := func(format string, args ...any) error { return &ProtocolError{p.Op, fmt.Sprintf(format, args...)} }
	r := Reply{Used: p.Chain.Used}
	if p.Op.NoReply() {
		if r.Used != 0 {
			return r, bad("%d bytes used where no answer exists", r.Used)
		}
		return r, nil
	}
	room := 0
	for _, s := range p.out {
		room += int(s.Len)
	}
	if int64(r.Used) > int64(room) {
		return r, bad("used length %d, room for %d", r.Used, room)
	}
	if r.Used == 0 {
		return r, nil
	}
	if r.Used < OutHeaderSize {
		return r, bad("used length %d is less than a header", r.Used)
	}
	b := make([]byte, 0, r.Used)
	for _, s := range p.out {
		n := min(int(s.Len), int(r.Used)-len(b))
		b = append(b, m.Bytes(s.Addr, n)...)
	}
	r.Len = binary.LittleEndian.Uint32(b[0:])
	code := int32(binary.LittleEndian.Uint32(b[4:]))
	r.Unique = binary.LittleEndian.Uint64(b[8:])
	r.Body = b[OutHeaderSize:]
	switch {
	case r.Unique != p.Unique:
		return r, bad("unique %d, not %d", r.Unique, p.Unique)
	case r.Len != r.Used:
		return r, bad("length %d in the header, used length %d", r.Len, r.Used)
	case code > 0 || code < -4095:
		return r, bad("error %d", code)
	case code != 0 && len(r.Body) != 0:
		return r, bad("%d bytes behind an error", len(r.Body))
	}
	r.Error = unix.Errno(-code)
	return r, nil
}

// call is Do for the typed helpers: an errno is an error, and so is a reply that is too short.
func (f *FUSE) call(r Request, atLeast int) ([]byte, error) {
	reply, err := f.Do(r)
	if err != nil {
		return nil, err
	}
	if reply.Error != 0 {
		return nil, fmt.Errorf("%v of node %d: %w", r.Op, r.Node, reply.Error)
	}
	if reply.Used == 0 {
		return nil, &ProtocolError{r.Op, "completed with length 0"}
	}
	if len(reply.Body) < atLeast {
		return nil, &ProtocolError{r.Op, fmt.Sprintf("body of %d bytes, at least %d expected", len(reply.Body), atLeast)}
	}
	return reply.Body, nil
}

// Body builds a request's arguments.
type Body []byte

// U16, U32, U64 append a number.
func (b Body) U16(v ...uint16) Body {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint16(b, x)
	}
	return b
}

// U32 appends numbers of 32 bits.
func (b Body) U32(v ...uint32) Body {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

// U64 appends numbers of 64 bits.
func (b Body) U64(v ...uint64) Body {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

// Name appends a name and its NUL.
func (b Body) Name(s string) Body { return append(append(b, s...), 0) }

// Attr is struct fuse_attr.
type Attr struct {
	Ino, Size, Blocks, Atime, Mtime, Ctime                                       uint64
	AtimeNsec, MtimeNsec, CtimeNsec, Mode, Nlink, UID, GID, Rdev, Blksize, Flags uint32
}

// DecodeAttr reads 88 bytes.
func DecodeAttr(b []byte) Attr {
	le := binary.LittleEndian
	return Attr{
		le.Uint64(b[0:]), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint64(b[40:]),
		le.Uint32(b[48:]), le.Uint32(b[52:]), le.Uint32(b[56:]), le.Uint32(b[60:]), le.Uint32(b[64:]), le.Uint32(b[68:]),
		le.Uint32(b[72:]), le.Uint32(b[76:]), le.Uint32(b[80:]), le.Uint32(b[84:]),
	}
}

// Entry is struct fuse_entry_out.
type Entry struct {
	Node, Generation, EntryValid, AttrValid uint64
	Attr                                    Attr
}

// DecodeEntry reads EntrySize bytes.
func DecodeEntry(b []byte) Entry {
	le := binary.LittleEndian
	return Entry{le.Uint64(b[0:]), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:]), DecodeAttr(b[40:])}
}

// InitReply is struct fuse_init_out.
type InitReply struct {
	Major, Minor, MaxReadahead uint32
	Flags                      uint64 // both words
	MaxBackground, Congestion  uint16
	MaxWrite, TimeGran         uint32
	MaxPages                   uint16
}

// InitArgs is INIT's body.
func InitArgs(major, minor uint32, flags uint64) Body {
	return Body(nil).U32(major, minor, 128<<10, uint32(flags), uint32(flags>>32)).U32(make([]uint32, 11)...)
}

// Init opens the session with version 7.38 and the given flags (0: InitFlagsLinux).
func (f *FUSE) Init(flags uint64) (InitReply, error) {
	if flags == 0 {
		flags = InitFlagsLinux
	}
	b, err := f.call(Request{Op: OpInit, Args: InitArgs(7, 38, flags), OutArgs: InitOutSize}, 24)
	if err != nil {
		return InitReply{}, err
	}
	b = append(b, make([]byte, InitOutSize)...)
	le := binary.LittleEndian
	return InitReply{
		Major: le.Uint32(b), Minor: le.Uint32(b[4:]), MaxReadahead: le.Uint32(b[8:]),
		Flags:         uint64(le.Uint32(b[12:])) | uint64(le.Uint32(b[32:]))<<32,
		MaxBackground: le.Uint16(b[16:]), Congestion: le.Uint16(b[18:]),
		MaxWrite: le.Uint32(b[20:]), TimeGran: le.Uint32(b[24:]), MaxPages: le.Uint16(b[28:]),
	}, nil
}

// Destroy ends the session.
func (f *FUSE) Destroy() error {
	_, err := f.call(Request{Op: OpDestroy}, 0)
	return err
}

func (f *FUSE) entry(r Request) (Entry, error) {
	r.OutArgs = EntrySize
	b, err := f.call(r, EntrySize)
	if err != nil {
		return Entry{}, err
	}
	return DecodeEntry(b), nil
}

// Lookup finds a name and takes one reference on its node.
func (f *FUSE) Lookup(dir uint64, name string) (Entry, error) {
	return f.entry(Request{Op: OpLookup, Node: dir, Args: Body(nil).Name(name)})
}

// Walk looks one name up after the other and forgets the directories between.
func (f *FUSE) Walk(names ...string) (Entry, error) {
	e := Entry{Node: RootNode}
	for _, n := range names {
		next, err := f.Lookup(e.Node, n)
		if e.Node != RootNode {
			f.Forget(e.Node, 1)
		}
		if err != nil {
			return Entry{}, err
		}
		e = next
	}
	return e, nil
}

// Forget gives n references back, on the high priority queue.
func (f *FUSE) Forget(node, n uint64) error {
	_, err := f.Do(Request{Op: OpForget, Node: node, Args: Body(nil).U64(n)})
	return err
}

// Getattr asks for a node's attributes.
func (f *FUSE) Getattr(node uint64) (Attr, error) {
	b, err := f.call(Request{Op: OpGetattr, Node: node, Args: Body(nil).U32(0, 0).U64(0), OutArgs: AttrOutSize}, AttrOutSize)
	if err != nil {
		return Attr{}, err
	}
	return DecodeAttr(b[16:]), nil
}

// Setattr's valid bits.
const (
	SetMode = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetFH
)

// Setattr changes those fields of a node that valid names.
func (f *FUSE) Setattr(node uint64, valid uint32, a Attr, fh uint64) (Attr, error) {
	args := Body(nil).U32(valid, 0).U64(fh, a.Size, 0, a.Atime, a.Mtime, a.Ctime).
		U32(a.AtimeNsec, a.MtimeNsec, a.CtimeNsec, a.Mode, 0, a.UID, a.GID, 0)
	b, err := f.call(Request{Op: OpSetattr, Node: node, Args: args, OutArgs: AttrOutSize}, AttrOutSize)
	if err != nil {
		return Attr{}, err
	}
	return DecodeAttr(b[16:]), nil
}

func (f *FUSE) open(op Opcode, node uint64, flags uint32) (uint64, error) {
	b, err := f.call(Request{Op: op, Node: node, Args: Body(nil).U32(flags, 0), OutArgs: OpenOutSize}, OpenOutSize)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// Open opens a file with flags of open(2) and returns its handle.
func (f *FUSE) Open(node uint64, flags uint32) (uint64, error) { return f.open(OpOpen, node, flags) }

// Opendir opens a directory.
func (f *FUSE) Opendir(node uint64) (uint64, error) {
	return f.open(OpOpendir, node, unix.O_RDONLY|unix.O_DIRECTORY)
}

// Release closes a file.
func (f *FUSE) Release(node, fh uint64) error {
	_, err := f.call(Request{Op: OpRelease, Node: node, Args: Body(nil).U64(fh).U32(0, 0).U64(0)}, 0)
	return err
}

// Releasedir closes a directory.
func (f *FUSE) Releasedir(node, fh uint64) error {
	_, err := f.call(Request{Op: OpReleasedir, Node: node, Args: Body(nil).U64(fh).U32(0, 0).U64(0)}, 0)
	return err
}

// Flush is close(2) of one descriptor.
func (f *FUSE) Flush(node, fh uint64) error {
	_, err := f.call(Request{Op: OpFlush, Node: node, Args: Body(nil).U64(fh).U32(0, 0).U64(0)}, 0)
	return err
}

// Fsync writes a file's data to stable storage.
func (f *FUSE) Fsync(node, fh uint64) error {
	_, err := f.call(Request{Op: OpFsync, Node: node, Args: Body(nil).U64(fh).U32(0, 0)}, 0)
	return err
}

// Create makes and opens a file.
func (f *FUSE) Create(dir uint64, name string, flags, mode uint32) (Entry, uint64, error) {
	args := Body(nil).U32(flags|unix.O_CREAT, unix.S_IFREG|mode, 0, 0).Name(name)
	b, err := f.call(Request{Op: OpCreate, Node: dir, Args: args, OutArgs: EntrySize + OpenOutSize}, EntrySize+OpenOutSize)
	if err != nil {
		return Entry{}, 0, err
	}
	return DecodeEntry(b), binary.LittleEndian.Uint64(b[EntrySize:]), nil
}

// ReadArgs is READ's body.
func ReadArgs(fh, off uint64, size uint32) Body {
	return Body(nil).U64(fh, off).U32(size, 0).U64(0).U32(0, 0)
}

// Read reads up to size bytes.
func (f *FUSE) Read(node, fh, off uint64, size uint32) ([]byte, error) {
	return f.call(Request{Op: OpRead, Node: node, Args: ReadArgs(fh, off, size), OutData: int(size)}, 0)
}

// Write writes data and returns how much of it was taken.
func (f *FUSE) Write(node, fh, off uint64, data []byte) (uint32, error) {
	b, err := f.call(Request{Op: OpWrite, Node: node, Args: ReadArgs(fh, off, uint32(len(data))), Data: data, OutArgs: 8}, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

// Mkdir makes a directory.
func (f *FUSE) Mkdir(dir uint64, name string, mode uint32) (Entry, error) {
	return f.entry(Request{Op: OpMkdir, Node: dir, Args: Body(nil).U32(mode, 0).Name(name)})
}

// Mknod makes a file of any type.
func (f *FUSE) Mknod(dir uint64, name string, mode, rdev uint32) (Entry, error) {
	return f.entry(Request{Op: OpMknod, Node: dir, Args: Body(nil).U32(mode, rdev, 0, 0).Name(name)})
}

// Symlink makes a symbolic link.
func (f *FUSE) Symlink(dir uint64, name, target string) (Entry, error) {
	return f.entry(Request{Op: OpSymlink, Node: dir, Args: Body(nil).Name(name).Name(target)})
}

// Link makes a hard link to node.
func (f *FUSE) Link(node, dir uint64, name string) (Entry, error) {
	return f.entry(Request{Op: OpLink, Node: dir, Args: Body(nil).U64(node).Name(name)})
}

// Readlink reads a symbolic link.
func (f *FUSE) Readlink(node uint64) (string, error) {
	b, err := f.call(Request{Op: OpReadlink, Node: node, OutData: PageSize}, 0)
	return string(b), err
}

// Unlink removes a name that is no directory.
func (f *FUSE) Unlink(dir uint64, name string) error {
	_, err := f.call(Request{Op: OpUnlink, Node: dir, Args: Body(nil).Name(name)}, 0)
	return err
}

// Rmdir removes an empty directory.
func (f *FUSE) Rmdir(dir uint64, name string) error {
	_, err := f.call(Request{Op: OpRmdir, Node: dir, Args: Body(nil).Name(name)}, 0)
	return err
}

// Rename renames; flags are renameat2's.
func (f *FUSE) Rename(dir uint64, name string, newDir uint64, newName string, flags uint32) error {
	r := Request{Op: OpRename, Node: dir, Args: Body(nil).U64(newDir).Name(name).Name(newName)}
	if flags != 0 {
		r = Request{Op: OpRename2, Node: dir, Args: Body(nil).U64(newDir).U32(flags, 0).Name(name).Name(newName)}
	}
	_, err := f.call(r, 0)
	return err
}

// Statfs asks for the file system's figures; the reply is struct fuse_kstatfs.
func (f *FUSE) Statfs(node uint64) ([]byte, error) {
	return f.call(Request{Op: OpStatfs, Node: node, OutArgs: 80}, 80)
}

// Dirent is one entry of a directory; Entry is there for READDIRPLUS only (Node 0: none was looked up).
type Dirent struct {
	Ino, Off uint64
	Type     uint32
	Name     string
	Entry    Entry
}

// Readdir reads names from off on, in size bytes at most. An empty answer is the end.
func (f *FUSE) Readdir(node, fh, off uint64, size uint32) ([]Dirent, error) {
	b, err := f.call(Request{Op: OpReaddir, Node: node, Args: ReadArgs(fh, off, size), OutData: int(size)}, 0)
	if err != nil {
		return nil, err
	}
	return DecodeDirents(b, false)
}

// Readdirplus reads entries with attributes; each takes a reference on its node.
func (f *FUSE) Readdirplus(node, fh, off uint64, size uint32) ([]Dirent, error) {
	b, err := f.call(Request{Op: OpReaddirplus, Node: node, Args: ReadArgs(fh, off, size), OutData: int(size)}, 0)
	if err != nil {
		return nil, err
	}
	return DecodeDirents(b, true)
}

// DecodeDirents reads a READDIR's or, with plus, a READDIRPLUS's reply.
func DecodeDirents(b []byte, plus bool) ([]Dirent, error) {
	op := OpReaddir
	if plus {
		op = OpReaddirplus
	}
	var all []Dirent
	le := binary.LittleEndian
	for len(b) > 0 {
		var d Dirent
		fixed := 24
		if plus {
			fixed += EntrySize
			if len(b) < fixed {
				return nil, &ProtocolError{op, fmt.Sprintf("%d bytes are left for an entry", len(b))}
			}
			d.Entry = DecodeEntry(b)
		}
		if len(b) < fixed {
			return nil, &ProtocolError{op, fmt.Sprintf("%d bytes are left for an entry", len(b))}
		}
		h := b[fixed-24:]
		n := int(le.Uint32(h[16:]))
		if n > len(b)-fixed {
			return nil, &ProtocolError{op, fmt.Sprintf("name of %d bytes in %d", n, len(b)-fixed)}
		}
		d.Ino, d.Off, d.Type, d.Name = le.Uint64(h), le.Uint64(h[8:]), le.Uint32(h[20:]), string(b[fixed:fixed+n])
		all = append(all, d)
		b = b[min(len(b), (fixed+n+7)&^7):]
	}
	return all, nil
}

package guestproto

// What [CallHold] takes hold of: the host lays it out under Where.Dir ([HeldLayout]), and gives it
// other names afterwards ([HeldMoves]), by itself or by another guest of the share. [CallHeld] then
// looks whether each is still what it was.
const (
	HeldWorkingDirectory = "working-directory" // chdir(2) into it
	HeldPathDirectory    = "path-directory"    // opened with O_PATH
	HeldPathFile         = "path-file"         // opened with O_PATH
	HeldMountDirectory   = "mount-directory"   // bound to another place of the guest
	HeldMountFile        = "mount-file"        // bound to another place of the guest
	HeldFirstLink        = "first-link"        // two names of a file, both looked up and opened with O_PATH; the first is removed
	HeldLastLink         = "last-link"         // the same; the one that was looked up last is removed
	HeldLower            = "lower"             // the lower directory of an overlay
	HeldOthers           = "others"            // a directory with HoldArgs.Others files, 00000 and up
)

// Names in and beside the above.
const (
	HeldInside  = "inside"  // a file of each directory; its content is HeldContent
	HeldMade    = "made"    // what the guest makes in each directory that it still holds; its content is HeldContent, too
	HeldInto    = "into"    // where things are moved to
	HeldSecond  = "-second" // behind a file's name: its other link
	HeldRenamed = "-renamed"
	HeldContent = "what it was\n"
	HeldAdded   = "and more\n" // what the guest appends to each file that it still holds
)

// HeldDirectories are the directories, HeldFiles the files, in order.
var (
	HeldDirectories = []string{HeldWorkingDirectory, HeldPathDirectory, HeldMountDirectory, HeldLower}
	HeldFiles       = []string{HeldPathFile, HeldMountFile, HeldFirstLink, HeldLastLink}
)

// HeldMoves are the new names, by the old ones, under Where.Dir; "" is a name that is removed.
var HeldMoves = map[string]string{
	HeldWorkingDirectory:      HeldWorkingDirectory + HeldRenamed,
	HeldPathDirectory:         HeldInto + "/" + HeldPathDirectory,
	HeldPathFile:              HeldInto + "/" + HeldPathFile,
	HeldMountDirectory:        HeldMountDirectory + HeldRenamed,
	HeldMountFile:             HeldInto + "/" + HeldMountFile,
	HeldFirstLink:             "",
	HeldLastLink + HeldSecond: "",
	HeldLower:                 HeldLower + HeldRenamed,
}

// HeldNow is the name under which the host finds what was called name before [HeldMoves].
func HeldNow(name string) string {
	switch to, moved := HeldMoves[name]; {
	case !moved:
		return name
	case to == "":
		return name + HeldSecond
	default:
		return to
	}
}

// HoldArgs says where the host has laid things out. Others is how many files of HeldOthers the
// guest looks up afterwards: the daemon may then have let go of what it knew first.
type HoldArgs struct {
	Where
	Others int `json:"others,omitempty"`
}

// Hold says what is held.
type Hold struct {
	Held   []string `json:"held"`
	Others int      `json:"others"`
}

// HeldArgs says of which directory.
type HeldArgs struct{ Where }

// Held has one check per thing held. Its name begins with the last word of Where.Dir and a hyphen.
// Afterwards nothing is held.
type Held struct {
	Checks []Check `json:"checks"`
}

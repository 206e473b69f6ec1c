package sandbox

import (
	"fmt"
	"strings"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// String is the set as a list of names without their common prefix, or what it lacks of all where that is shorter.
func (s Caps) String() string {
	var names, lacks []string
	for c := range cap.MaxBits() {
		name := strings.TrimPrefix(c.String(), "cap_")
		if s.Has(Cap(c)) {
			names = append(names, name)
		} else {
			lacks = append(lacks, name)
		}
	}
	switch {
	case len(names) == 0:
		return "none"
	case len(lacks) == 0:
		return "all"
	case len(lacks) < 6:
		return "all but " + strings.Join(lacks, ",")
	}
	return strings.Join(names, ",")
}

// needed are the capabilities that serving takes: to act as any owner on the share, and to take on a caller's ids.
const needed = Caps(1<<Chown | 1<<DacOverride | 1<<Fowner | 1<<Fsetid | 1<<Setgid | 1<<Setuid | 1<<Mknod | 1<<Setfcap)

// CheckModCaps is what is wrong with the list of --modcaps.
func CheckModCaps(list string) error {
	_, err := modify(0, list)
	return err
}

// modify applies a list such as "+sys_admin:-mknod" to a set, in the grammar of --modcaps.
func modify(s Caps, list string) (Caps, error) {
	if list == "" {
		return s, nil
	}
	for _, w := range strings.Split(list, ":") {
		if len(w) < 2 || (w[0] != '+' && w[0] != '-') {
			return s, fmt.Errorf("--modcaps: %q is neither +CAPABILITY nor -CAPABILITY, as in +sys_admin:-mknod", w)
		}
		name := strings.ToLower(w[1:])
		if !strings.HasPrefix(name, "cap_") {
			name = "cap_" + name
		}
		v, err := cap.FromName(name)
		if err != nil {
			return s, fmt.Errorf("--modcaps: %q is no capability; see capabilities(7)", w[1:])
		}
		if w[0] == '+' {
			s |= 1 << v
		} else {
			s &^= 1 << v
		}
	}
	return s, nil
}

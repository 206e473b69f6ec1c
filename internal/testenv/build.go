package testenv

import (
	"fmt"
	"os"
	"os/exec"
)

// Build builds commands of this tree, static as they are shipped, into a directory.
func Build(dir string, commands ...string) error {
	args := []string{"build", "-trimpath", "-o", dir + "/"}
	for _, c := range commands {
		args = append(args, "virtiofsd/cmd/"+c)
	}
	c := exec.Command("go", args...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build %v: %w: %s", commands, err, out)
	}
	return nil
}

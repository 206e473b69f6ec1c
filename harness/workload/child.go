package workload

import (
	"fmt"
	"io"
)

// Child is the entry of a helper process of the agent; it returns an exit status.
func Child(name string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	switch name {
	case "posixtest":
		return childPosixTest(args, stdout)
	case "create":
		return childCreate(stdin, stdout, stderr)
	case "differ":
		return childDiffer(stdin, stdout, stderr)
	case "churn":
		return childChurn(stdin, stdout, stderr)
	}
	fmt.Fprintf(stderr, "unknown child %q\n", name)
	return 2
}

// Package runner runs the matrix: for each scenario, implementation and guest kernel one cell.
//
// A cell has a work directory of its own beside which nothing of the machine is touched: the share, a folder of sentinel files outside of
// it, and the daemon's socket. The runner plants what the scenario says, starts the daemon as the scenario's launcher would
// (package launch), boots a guest (package qemu), takes the steps in order, each of which is a guest call or a host probe, powers the guest
// off, and watches how the daemon ends. Everything seen is written down as observations; what they mean is asked of Config.Judge.
//
// Whose fault is it? A daemon that ends before the guest has mounted the share has refused (result.CellRefused). A guest that
// cannot mount, hangs or dies while it uses the share is the daemon's doing: the cell has run, and its observations say what
// happened. What the runner itself cannot do (no room, no QEMU, a kernel that does not boot without the share's help) breaks the cell (result.CellBroken),
// and says nothing of the daemon.
//
// Users, groups and subordinate ids of a scenario exist only in the daemon's own mount namespace (launch.Spec.Etc). Children die with the
// runner; work directories of runs that were killed are removed by the next run.
package runner

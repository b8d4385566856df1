"""The number of threads that calls use, and threadpoolctl's say in it.

The pool is the library's own: created at the first call that needs it, shared by all Python threads, safe to fork.
"""

import operator
import sys

from . import _core

__all__ = ["get_num_threads", "set_num_threads"]


def set_num_threads(n):
    """
    Set the number of threads that calls on CPU arrays use.

    Holds for the whole process, from the next call on. Results do not depend on it: they are the same bits for any number.

    Parameters
    ----------
    n : int
        The largest number of threads of a call, the calling one among them. 0 restores the default: the environment variable
        ``ATTILE_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the number of CPUs that the process may use (the smaller of its
        affinity mask and its control group's quota).

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is negative or does not fit into 32 bits.

    See Also
    --------
    get_num_threads : The number in force.

    Notes
    -----
    `threadpoolctl <https://github.com/joblib/threadpoolctl>`_ controls the same number, under the user API ``"attile"``:
    ``with threadpool_limits(1): ...`` holds for attile too.

    Examples
    --------
    >>> import attile
    >>> attile.set_num_threads(2)
    >>> attile.get_num_threads()
    2
    >>> attile.set_num_threads(0)
    """
    try:
        n = operator.index(n)
    except TypeError:
        raise TypeError(f"set_num_threads: n must be an integer: expected int, got {type(n).__name__}") from None
    if not -(2**31) <= n < 2**31:
        raise ValueError(f"set_num_threads: n must fit into 32 bits: expected 0 to {2**31 - 1}, got {n}")
    _core.set_num_threads(n)


def get_num_threads():
    """
    Return the number of threads that calls on CPU arrays use.

    Returns
    -------
    int
        The number last set, else the default; see `set_num_threads`.

    See Also
    --------
    set_num_threads : Change it.

    Examples
    --------
    >>> import attile
    >>> attile.get_num_threads() >= 1
    True
    """
    return _core.get_num_threads()


def _register_with(threadpoolctl):
    """Make the module `threadpoolctl` know libattile; do nothing for versions (before 3.2) that take no controllers."""
    if not hasattr(threadpoolctl, "register"):
        return

    class AttileController(threadpoolctl.LibController):
        user_api = "attile"
        internal_api = "attile"
        filename_prefixes = ("libattile",)
        check_symbols = ("attile_get_num_threads", "attile_set_num_threads")

        def get_num_threads(self):
            return self.dynlib.attile_get_num_threads()

        def set_num_threads(self, num_threads):
            self.dynlib.attile_set_num_threads(num_threads)

        def get_version(self):
            return _core.__version__

    threadpoolctl.register(AttileController)


class _ThreadpoolctlHook:
    """An import hook that waits for threadpoolctl, which attile does not import by itself, and registers with it."""

    def find_spec(self, name, path=None, target=None):
        if name != "threadpoolctl":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                self._wrap(spec.loader)
                return spec
        return None

    def _wrap(self, loader):
        execute = loader.exec_module

        def execute_and_register(module):
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _register_with(module)

        loader.exec_module = execute_and_register


if "threadpoolctl" in sys.modules:
    _register_with(sys.modules["threadpoolctl"])
else:
    sys.meta_path.insert(0, _ThreadpoolctlHook())

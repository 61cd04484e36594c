"""What every family uses."""


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register everything, as importing the package does: where ``mmengine.hub.get_model`` asks for it.

    Args:
        init_default_scope: Unused; MMEngine's convention.
    """
    import pixeldcl_plugin  # noqa: F401

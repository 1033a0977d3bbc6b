def create_auto_augment(spec, **_):
    return None

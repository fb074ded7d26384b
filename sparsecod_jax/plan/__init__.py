"""Does a run fit and compile on devices that are not here?"""

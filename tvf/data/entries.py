"""What lies in a folder, by names and kinds: images, what systems leave, folders, links."""

import os

from tvf.errors import InputError
from tvf.files import printable

# What Pillow can open. Left out are its formats that only a plug-in or another program can decode
# (.eps, .wmf, .h5, ...): what they are read as would depend on the machine.
IMAGE_ENDINGS = frozenset(
    "apng avif avifs blp bmp bw cur dcx dds dib fit fits flc fli ftc ftu gbr gif icb icns ico im "
    "j2c j2k jfi jfif jif jp2 jpc jpe jpeg jpf jpg jpx mpo msp pbm pcd pcx pfm pgm pjp pjpeg png "
    "pnm ppm psd pxr qoi ras rgb rgba sgi tga tif tiff vda vst webp xbm xpm".split()
)
# What systems and programs leave in folders, in lower case. Names that begin with a dot are hidden.
SYSTEM_NAMES = frozenset(
    "__macosx|__pycache__|@eadir|@tmp|@recycle|@recently-snapshot|#recycle|#snapshot|~snapshot|"
    "$recycle.bin|system volume information|found.000|lost+found|thumbs.db|"
    "ehthumbs.db|ehthumbs_vista.db|desktop.ini|folder.ini|icon\r|network trash folder|"
    "temporary items|_vti_cnf".split("|")
)
LONGEST_ENDING = 12
FOLDER, FILE, SPECIAL_FILE, BROKEN_LINK = "folder", "file", "special file", "broken link"


def is_system(name: str) -> bool:
    """Whether a name is hidden (it begins with a dot), or one that systems leave in folders."""
    return name.startswith((".", "~$")) or name.lower() in SYSTEM_NAMES


def ending_of(name: str) -> str:
    """What follows the last dot of a name, in lower case; empty if there is no dot."""
    _, dot, ending = name.rpartition(".")
    return ending.lower() if dot else ""


def is_image(name: str) -> bool:
    """Whether a file's name has the ending of an image."""
    return ending_of(name) in IMAGE_ENDINGS


def kind_of_ending(name: str) -> str:
    """A file's ending as it is counted; numbers and long words are none."""
    ending = ending_of(name)
    if not ending or ending.isdecimal() or len(ending) > LONGEST_ENDING:
        return "without ending"
    return f".{ending}"


def kind_of(entry: "os.DirEntry[str]") -> str:
    """What an entry is, or what it links to: a folder, a file, something else, or nothing."""
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return FILE
        os.stat(entry.path)
        return SPECIAL_FILE
    except OSError:
        return BROKEN_LINK


def scan(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder; InputError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(
            f"{printable(folder)} cannot be read: {error.strerror}. Make it readable or remove it."
        ) from error

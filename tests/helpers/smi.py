"""A fake nvidia-smi, which prints what a file holds."""

from pathlib import Path


class FakeSmi:
    """`nvidia-smi` in a folder for the PATH; GPU "u0" has number 0, and so on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._printed = folder / "bin", folder / "bin" / "printed"
        self.folder.mkdir()
        program = self.folder / "nvidia-smi"
        program.write_text(
            '#!/bin/sh\ncase "$1" in\n'
            "*memory.total*) echo 81559 ;;\n"
            f'*) while read -r line; do echo "$line"; done < "{self._printed}" ;;\nesac\n'
        )
        program.chmod(0o755)

    def says(self, *percents: object) -> None:
        """How busy each GPU is from now on."""
        lines = (f"{gpu}, GPU-U{gpu}, {percent}\n" for gpu, percent in enumerate(percents))
        whole = self._printed.with_suffix(".new")
        whole.write_text("".join(lines))
        whole.rename(self._printed)

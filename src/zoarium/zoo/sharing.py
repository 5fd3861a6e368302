"""Pushing to and pulling from the Hugging Face hub, as methods of a zoo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from zoarium.zoo.hub import Origin, Pushed
    from zoarium.zoo.zoo import Zoo

    Progress = Callable[[float, float, str], None]


class Sharing:
    """Zoos on the hub; needs ``pip install 'zoarium[hub]'``."""

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, revision: str | None = None, license: str = "cc-by-4.0",
        token: str | bool | None = None, commit_message: str | None = None, create_pr: bool = False,
        card: bool | str | Path = True, on_progress: Progress | None = None,
    ) -> Pushed:  # fmt: skip
        """Push this zoo, or the models of this view, to the Hugging Face hub as a data set.

        Parameters
        ----------
        repo_id : str
            ``owner/name``; made if it is not there. What another zoo has left there is replaced (and stays in the
            history); other files are left alone.
        private : bool, optional
            Whether a new data set is private; default as the owner's settings on the hub say. True is an error for
            one that is public already.
        revision : str, optional
            Branch to push to, made if it is not there; default ``main``.
        license : str, default "cc-by-4.0"
            As the hub spells it; goes into the card.
        token : str, optional
            Default the one of ``hf auth login`` or of ``HF_TOKEN``.
        commit_message : str, optional
        create_pr : bool, default False
            Propose the change as a pull request. To go on with one that was cut off, pass
            ``revision="refs/pr/NUMBER"`` instead.
        card : bool or path, default True
            Whether to write the data set's card (:func:`zoarium.report.dataset_card`), or a Markdown file to use. A
            card that somebody has written by hand, without the line that says it was generated, is kept.
        on_progress : callable, optional
            Called with bytes done, bytes in all, and what is next.

        Returns
        -------
        Pushed
            The commit, its page, and what was uploaded.

        Raises
        ------
        HubError
            If the hub refuses or cannot be reached.
        DamagedError
            If a file of the zoo is not what was written; nothing damaged is uploaded.
        MissingExtraError
            Without ``zoarium[hub]``.

        Notes
        -----
        Every revision on the hub is a whole zoo: weights come first, in commits of up to 5 GB that the `zoo.json`
        there does not list; one last commit changes everything else. Cut off, it is resumed by the same call: files
        whose checksums the hub has are not uploaded again. Other processes may write the zoo meanwhile. The zoo is
        read once for its checksums and once for the upload; a view is first saved to a temporary folder.

        Examples
        --------
        ```python
        zoo.push_to_hub("me/digit-phases", private=True)
        ```
        """
        from zoarium.zoo.hub import push_to_hub

        return push_to_hub(
            cast("Zoo", self), repo_id, private=private, revision=revision, license=license, token=token,
            commit_message=commit_message, create_pr=create_pr, card=card, on_progress=on_progress,
        )  # fmt: skip

    @classmethod
    def from_hub(
        cls, repo_id: str, path: str | Path | None = None, *, revision: str | None = None, weights: bool = False,
        token: str | bool | None = None, cache_dir: str | Path | None = None, on_progress: Progress | None = None,
    ) -> Zoo:  # fmt: skip
        """Pull a zoo from the Hugging Face hub: its tables now, its weights when they are needed.

        Parameters
        ----------
        repo_id : str
            A data set that holds a zoo, ``owner/name``.
        path : path, optional
            Folder for it, empty or not there yet; an earlier pull of the same revision is resumed or opened. By
            default a folder of this revision's own in the hub's assets cache, shared by all who pull it.
        revision : str, optional
            Branch, tag or commit; default ``main``. Whatever it is, the zoo stays at the commit it meant today, which
            ``zoo.origin`` names.
        weights : bool, default False
            Whether to download all weights and data now. Otherwise each file comes when one of its models is first
            loaded; :meth:`download` fetches those of a view at once.
        token : str, optional
            Default the one of ``hf auth login`` or of ``HF_TOKEN``; it is not stored with the zoo.
        cache_dir : path, optional
            The hub's cache; default ``HF_HUB_CACHE``.
        on_progress : callable, optional
            Called with bytes done, bytes in all, and the file that is next.

        Returns
        -------
        Zoo
            An ordinary zoo on disk: it can be measured and grown, and opened again with ``za.open``.

        Raises
        ------
        HubError
            If there is no such data set or revision, it is no zoo, it is gated, or the hub cannot be reached.
        DamagedError
            If a file there is not what `zoo.json` lists.
        StoreError
            If the folder holds something else.

        Notes
        -----
        Every file is compared with the SHA-256 in `zoo.json` before it becomes part of the zoo. Files are links into
        the hub's cache, so disk space is taken once; without a network, what is in the cache is used. A file that was
        cut off begins anew at the next call; within a call it is resumed.

        Examples
        --------
        ```python
        zoo = Zoo.from_hub("me/digit-phases")      # its tables
        zoo.where(width=8).download(epoch=30)      # the weights of some
        ```
        """
        from zoarium.zoo.hub import from_hub

        return from_hub(
            repo_id, path, revision=revision, weights=weights, token=token, cache_dir=cache_dir,
            on_progress=on_progress,
        )  # fmt: skip

    def download(self, epoch: int | None = None, *, on_progress: Progress | None = None) -> Zoo:
        """Download the weights of these models that are not here yet, and the stored data, of a zoo from the hub.

        Parameters
        ----------
        epoch : int, optional
            Only the weights of this epoch; default all.
        on_progress : callable, optional
            Called with bytes done, bytes in all, and the file that is next.

        Returns
        -------
        Zoo
            Itself.

        Raises
        ------
        HubError
            If this zoo was not pulled, or the hub cannot be reached.
        DamagedError
            If a file there is not what `zoo.json` lists.
        """
        from zoarium.zoo.hub import download_weights

        return download_weights(cast("Zoo", self), epoch, on_progress=on_progress)

    @property
    def origin(self) -> Origin | None:
        """The data set on the hub and the commit this zoo was pulled from; None for one that was not."""
        from zoarium.zoo.hub.origin import read_origin

        return read_origin(cast("Zoo", self).path)

"""What one can do with a zoo in one call: each method forwards to the verb of its name, loaded when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from zoarium._core.errors import MeasureError, unknown_name

if TYPE_CHECKING:
    import altair
    import polars as pl

    from zoarium.measure.phases import Thresholds
    from zoarium.measure.phases.map import PhaseMap
    from zoarium.zoo.foreign.adding import Added
    from zoarium.zoo.weight_dataset import WeightDataset
    from zoarium.zoo.zoo import Zoo


class Verbs:
    """The verbs, as methods of a zoo."""

    @property
    def _zoo(self) -> Zoo:
        return cast("Zoo", self)

    def add(self, *sources: str | Path, **options: Any) -> Added:
        """Bring models that exist already into this zoo; see :func:`zoarium.zoo.foreign.adding.add`."""
        from zoarium.zoo.foreign.adding import add

        return add(self._zoo, *sources, **options)

    def copy_weights(self) -> Zoo:
        """Copy the weights that this zoo, or this view of it, points at, so that it needs no other file.

        Returns
        -------
        Zoo
            The same zoo, so that calls chain.

        Raises
        ------
        StoreError
            If a file is missing, holds a type of number that safetensors lacks, or the zoo cannot be written; nothing
            is then changed.
        DamagedError
            If a file has changed since it was added.

        Notes
        -----
        One tensor is held at a time; types are kept.
        """
        from zoarium.zoo.foreign.taking_in import take_in

        return take_in(self._zoo)

    def set_net(self, net: Any = None, *, net_params: Mapping[str, Any] | None = None, data: Any = None) -> Zoo:
        """Say what net the foreign models of this zoo, or of this view of it, are, so that they can run.

        Parameters
        ----------
        net : str or callable, optional
            A registered net, or a factory; a factory has to be attached again whenever the zoo is opened. By default
            the net each model has already, for other data.
        net_params : mapping, optional
            Parameters of the net, such as ``{"width": 64}``.
        data : str or Dataset, optional
            What the models are measured on; gives the net its input shape and number of outputs.

        Returns
        -------
        Zoo
            The same zoo, so that calls chain.

        Raises
        ------
        NetError
            If a model's tensors are not those of the net, naming the first that differs; nothing is then changed.
        StoreError
            If none of the models is foreign.

        Examples
        --------
        >>> import tempfile, torch, zoarium as za
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> layer = torch.nn.Linear(64, 10)
        >>> torch.save({"out.weight": layer.weight, "out.bias": layer.bias}, folder / "linear.pt")
        >>> zoo = za.add(folder / "zoo", folder).zoo
        >>> zoo.set_net("mlp", net_params={"depth": 0}, data="digits").measure("performance")["linear"].measures.keys()
        dict_keys([...])
        """
        from zoarium.zoo.foreign.intake import set_net

        return set_net(self._zoo, net, net_params=net_params, data=data)

    def measure(
        self,
        *names: str | Mapping[str, Mapping[str, Any]],
        pairs: str | Sequence[tuple[str, str]] = "cell",
        **settings: Any,
    ) -> Zoo:
        """Measure every model, pair or cell and store the values; see :func:`zoarium.measure.measure_zoo`.

        Examples
        --------
        >>> import zoarium as za
        >>> zoo = za.grow("mlp", width=[2, 8], epochs=2)
        >>> zoo.measure("performance", "hessian_trace").values("hessian_trace")["stderr"].to_list()
        [0.0, 0.0]
        """
        from zoarium.measure.driver import measure_zoo

        return measure_zoo(self._zoo, *names, pairs=pairs, **settings)

    def phases(
        self,
        load: str | None = None,
        temperature: str | None = None,
        thresholds: Thresholds | None = None,
        **options: Any,
    ) -> pl.DataFrame:
        """Label the phase of every cell, a row each; see :func:`zoarium.measure.phases.zoo_phases`."""
        from zoarium.measure.phases import zoo_phases

        return zoo_phases(self._zoo, load=load, temperature=temperature, thresholds=thresholds, **options)

    def phase_map(self, **options: Any) -> PhaseMap:
        r"""The phase diagram as text for the terminal; takes what :meth:`phases` takes.

        Examples
        --------
        >>> import zoarium as za
        >>> zoo = za.grow("mlp", width=[2, 32], batch_size=[8, 250], seed=range(2), epochs=4)
        >>> zoo = zoo.measure("performance", "hessian_trace", "mode_connectivity", "cka")
        >>> print(str(zoo.phase_map()).splitlines()[0])
        batch_size \ width   2   32
        """
        from zoarium.measure.phases.map import phase_map_text

        return phase_map_text(self.phases(**options))

    def effects(self, by: Literal["cell", "phase"] = "cell") -> pl.DataFrame:
        """Stored effects of averaging, ensembling, pruning and fine-tuning.

        Parameters
        ----------
        by : {"cell", "phase"}, default "cell"
            A row a cell and effect (``cell``, ``quantity``, ``value``, ``stderr``, ...), or the mean in each phase with
            its interval beside the phase-agnostic mean; see :func:`zoarium.evaluate.effects_by_phase`.
        """
        from zoarium.evaluate import effects_by_phase, stored_effects

        if by not in ("cell", "phase"):
            raise MeasureError(unknown_name("grouping of effects", by, ("cell", "phase")))
        stored = stored_effects(self._zoo)
        return stored if by == "cell" else effects_by_phase(stored, self.phases())

    def report(self, path: str | Path = "report.html") -> Path:
        """Write one self-contained HTML report; see :func:`zoarium.report.write_report`."""
        from zoarium.report import write_report

        return write_report(self._zoo, path)

    def chart(self, name: str = "phases") -> altair.Chart:
        """One chart of the report as an `altair.Chart`; see :func:`zoarium.report.chart`."""
        from zoarium.report import chart

        return chart(self._zoo, name)

    def as_dataset(self, targets: Sequence[str] = ("test_accuracy",), **options: Any) -> WeightDataset:
        """Weights as samples for learning; see :class:`zoarium.zoo.weight_dataset.WeightDataset`."""
        from zoarium.zoo.weight_dataset import WeightDataset

        return WeightDataset(self._zoo, targets=targets, **options)

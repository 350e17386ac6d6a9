//! Ropes and rotations.

use pie_rope as core;
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::errors::raise;
use crate::numbers::{count, integers_as};
use crate::plan::Plan;

/// One rotary position embedding: at position ``p``, pair ``i`` of every head is turned by ``p * inv_freq[i]`` radians.
///
/// ``pairing`` is ``"half-split"`` ("NeoX": dimensions ``i`` and ``i + n``) or ``"interleaved"`` ("GPT-J": ``2i`` and
/// ``2i + 1``); the rotated window starts at dimension ``offset`` of the head.
#[pyclass(frozen, eq, module = "pie_rope")]
#[derive(Clone, PartialEq)]
pub(crate) struct Rope(core::Rope);

fn pairing(name: &str) -> PyResult<core::Pairing> {
    match name {
        "half-split" => Ok(core::Pairing::HalfSplit),
        "interleaved" => Ok(core::Pairing::Interleaved),
        other => {
            let text =
                format!("pairing: there is no `{other}`, only `half-split` and `interleaved`");
            Err(PyValueError::new_err(text))
        }
    }
}

#[pymethods]
impl Rope {
    /// The original frequencies, ``theta ** (-2i / rotary_dim)``.
    #[staticmethod]
    #[pyo3(signature = (theta, rotary_dim, *, pairing="half-split", offset=0))]
    fn from_theta(theta: f64, rotary_dim: i64, pairing: &str, offset: i64) -> PyResult<Rope> {
        let pairing = self::pairing(pairing)?;
        let (rotary_dim, offset) = (count("rotary_dim", rotary_dim)?, count("offset", offset)?);
        let rope = core::Rope::from_theta(theta, rotary_dim).map_err(raise)?;
        Ok(Rope(rope.with_pairing(pairing).with_offset(offset)))
    }

    /// One inverse frequency for each pair, in radians a position: a sequence, an array or a tensor.
    #[staticmethod]
    #[pyo3(signature = (inv_freq, *, pairing="half-split", offset=0))]
    fn from_inv_freq(inv_freq: &Bound<'_, PyAny>, pairing: &str, offset: i64) -> PyResult<Rope> {
        let (pairing, offset) = (self::pairing(pairing)?, count("offset", offset)?);
        let list = if inv_freq.hasattr("tolist")? {
            inv_freq.call_method0("tolist")?
        } else {
            inv_freq.clone()
        };
        let inv_freq: Vec<f64> = list
            .extract()
            .map_err(|_| PyTypeError::new_err("inv_freq: it must be a flat sequence of numbers"))?;
        let rope = core::Rope::from_inv_freq(inv_freq).map_err(raise)?;
        Ok(Rope(rope.with_pairing(pairing).with_offset(offset)))
    }

    /// Each pair's angle per position, in radians.
    #[getter]
    fn inv_freq(&self) -> Vec<f64> {
        self.0.inv_freq().to_vec()
    }

    /// Which dimensions form a pair.
    #[getter]
    fn pairing(&self) -> String {
        self.0.pairing().to_string()
    }

    /// The first rotated dimension of a head.
    #[getter]
    fn offset(&self) -> usize {
        self.0.offset()
    }

    /// How many dimensions of a head are rotated.
    #[getter]
    fn rotary_dim(&self) -> usize {
        self.0.rotary_dim()
    }

    fn __repr__(&self) -> String {
        let (pairing, offset, rotary_dim) = (self.pairing(), self.offset(), self.rotary_dim());
        format!("Rope(rotary_dim={rotary_dim}, pairing='{pairing}', offset={offset})")
    }
}

/// The ropes of a model's layers; ``None`` for a layer whose keys carry no rotation.
#[pyclass(frozen, eq, module = "pie_rope")]
#[derive(Clone, PartialEq)]
pub(crate) struct ModelRope(core::ModelRope);

#[pymethods]
impl ModelRope {
    /// The same rope in each of ``layers`` layers.
    #[staticmethod]
    fn uniform(rope: &Rope, layers: i64) -> PyResult<ModelRope> {
        let layers = count("layers", layers)?;
        // A wild number would end the process where memory does.
        if layers > usize::from(u16::MAX) {
            return Err(PyValueError::new_err(format!(
                "layers: {layers} are more than {}",
                u16::MAX
            )));
        }
        Ok(ModelRope(core::ModelRope::uniform(rope.0.clone(), layers)))
    }

    /// One rope, or ``None``, for each layer.
    #[staticmethod]
    fn from_layers(layers: Vec<Option<PyRef<'_, Rope>>>) -> ModelRope {
        let layers = layers
            .iter()
            .map(|rope| rope.as_ref().map(|rope| rope.0.clone()));
        ModelRope(core::ModelRope::from_layers(layers))
    }

    /// What a model's published ``config.json`` says: its text, a ``dict`` of it, or a configuration of transformers.
    ///
    /// ``tokens``: the length of the sequence, on which frequencies depend under LongRoPE and dynamic NTK.
    #[staticmethod]
    #[pyo3(signature = (config, tokens=0))]
    fn from_config(config: &Bound<'_, PyAny>, tokens: i64) -> PyResult<ModelRope> {
        let tokens = count("tokens", tokens)?;
        let json: String = if let Ok(text) = config.extract() {
            text
        } else if config.hasattr("to_json_string")? {
            // Of transformers. Not the difference to its defaults, which may differ from version to version.
            config.call_method1("to_json_string", (false,))?.extract()?
        } else {
            let dump = config.py().import("json")?.getattr("dumps")?;
            let text = dump.call1((config,)).map_err(|error| {
                let text =
                    "config: it must be the text of a config.json, a dict of it, or a configuration of transformers";
                let wrong = PyTypeError::new_err(text);
                wrong.set_cause(config.py(), Some(error));
                wrong
            })?;
            text.extract()?
        };
        core::ModelRope::from_config_json_at(&json, tokens)
            .map(ModelRope)
            .map_err(raise)
    }

    /// How many layers the model has.
    #[getter]
    fn layers(&self) -> usize {
        self.0.layers()
    }

    /// The rope of a layer; ``None`` for one that has none.
    fn layer(&self, layer: i64) -> PyResult<Option<Rope>> {
        let layer = count("layer", layer)?;
        if layer >= self.0.layers() {
            let text = format!(
                "layer: there is no {layer} in a model of {}",
                self.0.layers()
            );
            return Err(PyIndexError::new_err(text));
        }
        Ok(self.0.layer(layer).cloned().map(Rope))
    }

    /// Every rope moved to dimension ``offset``, and with other pairs: for a cache that stores heads in another order
    /// than the model's own.
    #[pyo3(signature = (*, offset=None, pairing=None))]
    fn stored(&self, offset: Option<i64>, pairing: Option<&str>) -> PyResult<ModelRope> {
        let offset = offset.map(|offset| count("offset", offset)).transpose()?;
        let pairing = pairing.map(self::pairing).transpose()?;
        Ok(ModelRope(self.0.clone().map(|rope| {
            let offset = offset.unwrap_or(rope.offset());
            let pairing = pairing.unwrap_or(rope.pairing());
            rope.with_offset(offset).with_pairing(pairing)
        })))
    }

    fn __repr__(&self) -> String {
        format!(
            "ModelRope(layers={}, ropes={})",
            self.0.layers(),
            self.0.ropes().len()
        )
    }
}

/// A plan made ready for the kernels: made once for a model and a plan, used for all of its layers.
#[pyclass(frozen, eq, module = "pie_rope")]
#[derive(Clone, PartialEq)]
pub(crate) struct Rotations(pub(crate) core::Rotations);

#[pymethods]
impl Rotations {
    /// For ``rope``: a :class:`Rope`, with which a verb takes any number of layers, or a :class:`ModelRope`, with which
    /// it takes exactly the model's.
    #[new]
    fn new(plan: &Plan, rope: &Bound<'_, PyAny>) -> PyResult<Rotations> {
        let rotations = if let Ok(rope) = rope.cast::<Rope>() {
            core::Rotations::new(&plan.0, &rope.get().0)
        } else if let Ok(model) = rope.cast::<ModelRope>() {
            core::Rotations::for_model(&plan.0, &model.get().0)
        } else {
            return Err(PyTypeError::new_err(
                "rope: it must be a Rope or a ModelRope",
            ));
        };
        rotations.map(Rotations).map_err(raise)
    }

    /// For a model whose frequencies changed between the time the keys were encoded and now.
    #[staticmethod]
    fn between(plan: &Plan, old: &ModelRope, new: &ModelRope) -> PyResult<Rotations> {
        core::Rotations::between(&plan.0, &old.0, &new.0)
            .map(Rotations)
            .map_err(raise)
    }

    /// The same for some of the model's layers.
    fn select(&self, layers: &Bound<'_, PyAny>) -> PyResult<Rotations> {
        let layers = integers_as::<usize>("layers", layers)?;
        self.0.select(layers).map(Rotations).map_err(raise)
    }

    /// The same without the rows that neither turn nor move: what a splice touches.
    fn affected_only(&self) -> Rotations {
        Rotations(self.0.affected_only())
    }

    /// The same without the rows before ``row``, counted after the edit: for a copy whose first rows both sides share.
    fn starting_at(&self, row: i64) -> PyResult<Rotations> {
        Ok(Rotations(self.0.starting_at(count("row", row)?)))
    }

    /// How many rows at the start are as they were: they neither turn nor move, and are not to be encoded.
    #[getter]
    fn unchanged_rows(&self) -> usize {
        let mut rows = 0;
        for span in self.0.spans() {
            if span.is_affected() || span.dst != rows {
                break;
            }
            rows += span.len;
        }
        rows
    }

    /// Rows before.
    #[getter]
    fn old_rows(&self) -> usize {
        self.0.old_rows()
    }

    /// Rows after.
    #[getter]
    fn new_rows(&self) -> usize {
        self.0.new_rows()
    }

    /// How many layers a verb takes; ``None``: any number.
    #[getter]
    fn layers(&self) -> Option<usize> {
        self.0.layers()
    }

    fn __repr__(&self) -> String {
        format!(
            "Rotations(old_rows={}, new_rows={})",
            self.0.old_rows(),
            self.0.new_rows()
        )
    }
}

//! Self-attention inside windows of a map, with a bias for each relative place.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::{
    ModelError,
    device::by_kernels,
    layers::{Linear, self_attention, with_values},
    weights::Weights,
};

/// How a map of `height * width` tokens is cut: squares of `side` tokens, from the top left of the map after it has
/// been rolled by `shift` tokens up and left; padded below and right to whole windows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    pub(super) side: usize,
    pub(super) shift: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

/// Where one window's tokens lie, and what they see.
struct Window {
    /// Places in the map; `None` for padding.
    places: Vec<Option<usize>>,
    /// In which of the regions that the roll brought together each token lies. Tokens of different regions do not see
    /// each other.
    regions: Vec<usize>,
}

impl Window {
    fn is_whole(&self) -> bool {
        self.regions.iter().all(|region| *region == self.regions[0])
    }
}

impl Windows {
    fn rows(self) -> usize {
        self.height.div_ceil(self.side)
    }

    fn columns(self) -> usize {
        self.width.div_ceil(self.side)
    }

    /// The windows in reading order of the rolled map.
    fn all(self) -> Vec<Window> {
        (0..self.rows() * self.columns()).map(|number| self.window(number)).collect()
    }

    fn window(self, number: usize) -> Window {
        let (top, left) = (number / self.columns() * self.side, number % self.columns() * self.side);
        let (height, width) = (self.rows() * self.side, self.columns() * self.side);
        let region = |at: usize, length: usize| match self.shift {
            0 => 0,
            shift => usize::from(at + self.side >= length) + usize::from(at + shift >= length),
        };
        let mut window = Window { places: Vec::new(), regions: Vec::new() };
        for y in top..top + self.side {
            for x in left..left + self.side {
                let (from_y, from_x) = ((y + self.shift) % height, (x + self.shift) % width);
                let inside = from_y < self.height && from_x < self.width;
                window.places.push(inside.then_some(from_y * self.width + from_x));
                window.regions.push(region(y, height) * 3 + region(x, width));
            }
        }
        window
    }
}

/// The attention of one block.
pub(super) struct WindowAttention {
    heads: usize,
    width: usize,
    /// Queries, keys and values behind each other.
    qkv: Linear,
    /// What `qkv` makes of padding (zeros): its bias, or zeros.
    padding: Vec<f32>,
    output: Linear,
    /// `[1, heads, side², side²]`: query, key.
    bias: Tensor,
}

/// What is added between tokens of different regions, as the reference does.
const APART: f32 = -100.0;

impl WindowAttention {
    pub(super) fn load(
        weights: &Weights,
        width: usize,
        heads: usize,
        side: usize,
        qkv_bias: bool,
    ) -> std::result::Result<Self, ModelError> {
        let inner = weights.at("self");
        let parts = ["query", "key", "value"].map(|name| (inner.at(name), qkv_bias));
        let mut padding = Vec::with_capacity(3 * width);
        for (part, _) in &parts {
            padding.extend(if qkv_bias { part.values("bias", &[width])? } else { vec![0.0; width] });
        }
        let table = inner.values("relative_position_bias_table", &[(2 * side - 1).pow(2), heads])?;
        let area = side * side;
        let bias = Tensor::from_vec(relative_bias(&table, side, heads), (1, heads, area, area), weights.device());
        Ok(Self {
            heads,
            width,
            qkv: Linear::load_fused(&parts, width, width)?,
            padding,
            output: Linear::load(&weights.at("output.dense"), width, width, true)?,
            bias: bias.map_err(|e| weights.bad(format!("cannot lay out the relative position bias: {e}")))?,
        })
    }

    /// `[batch, height * width, channels]`, normed; gives the same shape, added to `residual`.
    pub(super) fn forward_onto(&self, tokens: &Tensor, windows: Windows, residual: &Tensor) -> Result<Tensor> {
        let (batch, count, _) = tokens.dims3()?;
        let qkv = self.qkv.forward(tokens)?;
        // Most windows share one bias; those that the roll put together of several regions have their own.
        let (whole, mixed): (Vec<_>, Vec<_>) = windows.all().into_iter().partition(Window::is_whole);
        if !by_kernels(&qkv) {
            return self.output.forward_onto(&self.attend_plainly(&qkv, [&whole, &mixed])?, residual);
        }
        let mut attended = vec![0.0_f32; batch * count * self.width];
        self.attend(&qkv, &whole, &self.bias, &mut attended)?;
        if !mixed.is_empty() {
            let apart = self.apart(&mixed, batch)?;
            self.attend(&qkv, &mixed, &self.bias.broadcast_add(&apart)?, &mut attended)?;
        }
        let attended = Tensor::from_vec(attended, (batch, count, self.width), tokens.device())?;
        self.output.forward_onto(&attended, residual)
    }

    /// Attention in `windows`; `out` is `[batch, height * width, channels]`.
    fn attend(&self, qkv: &Tensor, windows: &[Window], bias: &Tensor, out: &mut [f32]) -> Result<()> {
        let (batch, count, triple) = qkv.dims3()?;
        let Some(area) = windows.first().map(|window| window.places.len()) else { return Ok(()) };
        let mut gathered = vec![0.0_f32; batch * windows.len() * area * triple];
        with_values(qkv, |qkv| {
            gathered.par_chunks_mut(area * triple).enumerate().for_each(|(number, rows)| {
                let image = &qkv[number / windows.len() * count * triple..][..count * triple];
                for (place, row) in windows[number % windows.len()].places.iter().zip(rows.chunks_mut(triple)) {
                    row.copy_from_slice(place.map_or(&self.padding[..], |at| &image[at * triple..][..triple]));
                }
            });
            Ok(())
        })?;
        let gathered = Tensor::from_vec(gathered, (batch * windows.len(), area, triple), qkv.device())?;
        let attended = self_attention(&gathered, self.heads, Some(bias))?;
        with_values(&attended, |attended| {
            for (number, rows) in attended.chunks(area * self.width).enumerate() {
                let image = &mut out[number / windows.len() * count * self.width..][..count * self.width];
                for (place, row) in windows[number % windows.len()].places.iter().zip(rows.chunks(self.width)) {
                    if let Some(at) = place {
                        image[at * self.width..][..self.width].copy_from_slice(row);
                    }
                }
            }
            Ok(())
        })
    }

    /// Attention in windows of one region and in those of several, in candle's operations: `[batch, height * width,
    /// channels]`.
    fn attend_plainly(&self, qkv: &Tensor, kinds: [&[Window]; 2]) -> Result<Tensor> {
        let ((batch, count, triple), device) = (qkv.dims3()?, qkv.device());
        // What stands for padding lies behind the map's own tokens.
        let padding = Tensor::from_slice(&self.padding, (1, 1, triple), device)?;
        let padded = Tensor::cat(&[qkv, &padding.broadcast_as((batch, 1, triple))?], 1)?;
        let (mut attended, mut back) = (Vec::new(), vec![0_u32; count]);
        let mut before = 0;
        for (kind, windows) in kinds.into_iter().enumerate() {
            let Some(area) = windows.first().map(|window| window.places.len()) else { continue };
            let places = windows.iter().flat_map(|window| &window.places);
            let places: Vec<u32> = places.map(|place| place.unwrap_or(count) as u32).collect();
            for (i, &place) in places.iter().enumerate() {
                if let Some(back) = back.get_mut(place as usize) {
                    *back = before + i as u32;
                }
            }
            let tokens = places.len();
            before += tokens as u32;
            let gathered = padded.index_select(&Tensor::from_vec(places, tokens, device)?, 1)?;
            let gathered = gathered.reshape((batch * windows.len(), area, triple))?;
            let seen = match kind {
                0 => self_attention(&gathered, self.heads, Some(&self.bias))?,
                _ => {
                    let bias = self.bias.broadcast_add(&self.apart(windows, batch)?)?;
                    self_attention(&gathered, self.heads, Some(&bias))?
                }
            };
            attended.push(seen.reshape((batch, tokens, self.width))?);
        }
        Tensor::cat(&attended, 1)?.index_select(&Tensor::from_vec(back, count, device)?, 1)
    }

    /// What keeps the regions of `windows` apart: `[batch * windows, 1, side², side²]`.
    fn apart(&self, windows: &[Window], batch: usize) -> Result<Tensor> {
        let area = windows.first().map_or(0, |window| window.places.len());
        let mut apart = Vec::with_capacity(batch * windows.len() * area * area);
        for window in (0..batch).flat_map(|_| windows) {
            for query in &window.regions {
                apart.extend(window.regions.iter().map(|key| if key == query { 0.0 } else { APART }));
            }
        }
        Tensor::from_vec(apart, (batch * windows.len(), 1, area, area), self.bias.device())
    }
}

/// The bias of each pair of tokens: `[heads, side², side²]` from the table `[(2 side - 1)², heads]`.
fn relative_bias(table: &[f32], side: usize, heads: usize) -> Vec<f32> {
    let area = side * side;
    let mut bias = vec![0.0; heads * area * area];
    for query in 0..area {
        for key in 0..area {
            let down = query / side + side - 1 - key / side;
            let across = query % side + side - 1 - key % side;
            for head in 0..heads {
                bias[(head * area + query) * area + key] = table[(down * (2 * side - 1) + across) * heads + head];
            }
        }
    }
    bias
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_map_once_and_rolled_ones_know_their_regions() {
        for (side, shift, height, width) in [(4, 0, 8, 8), (4, 2, 8, 9), (7, 3, 5, 3), (2, 1, 1, 1), (3, 1, 10, 4)] {
            let windows = Windows { side, shift, height, width }.all();
            let mut places: Vec<usize> = windows.iter().flat_map(|w| w.places.iter().flatten()).copied().collect();
            places.sort_unstable();
            assert_eq!(places, (0..height * width).collect::<Vec<_>>());
            assert!(shift > 0 || windows.iter().all(Window::is_whole));
        }
        let last = Windows { side: 2, shift: 1, height: 4, width: 4 }.window(3);
        assert_eq!(last.places, [Some(15), Some(12), Some(3), Some(0)]);
        assert_eq!(last.regions, [4, 5, 7, 8]);
    }

    #[test]
    fn the_bias_depends_on_where_the_key_lies_from_the_query() {
        let table: Vec<f32> = (0..9).map(|i| i as f32).collect();
        let bias = relative_bias(&table, 2, 1);
        // Query top left, key bottom right: one up, one left of it.
        assert_eq!((bias[3], bias[0], bias[12]), (0.0, 4.0, 8.0));
    }
}

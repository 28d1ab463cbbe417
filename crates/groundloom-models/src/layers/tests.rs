#![allow(clippy::unwrap_used)]

use candle_core::{D, DType, IndexOp};
use candle_nn::ops::softmax_last_dim;
use proptest::prelude::*;

use super::*;
use crate::device::plainly;

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// The definition, in candle's operations: `[batch, length, width]` each.
fn plain_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, bias: Option<&Tensor>) -> Tensor {
    let split = |x: &Tensor| {
        let (b, l, w) = x.dims3().unwrap();
        x.reshape((b, l, heads, w / heads)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap()
    };
    let (q, k, v) = (split(q), split(k), split(v));
    let scale = 1.0 / (q.dim(3).unwrap() as f64).sqrt();
    let mut scores = (q.matmul(&k.t().unwrap().contiguous().unwrap()).unwrap() * scale).unwrap();
    if let Some(bias) = bias {
        scores = scores.broadcast_add(bias).unwrap();
    }
    softmax_last_dim(&scores).unwrap().matmul(&v).unwrap().transpose(1, 2).unwrap().flatten_from(2).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn attention_is_its_definition(
        batch in 1_usize..4, heads in 1_usize..4, half in 1_usize..12, m in 1_usize..40, n in 1_usize..150,
        per in 0_usize..4, seed: u64,
    ) {
        let width = heads * half * 2;
        let (q, k, v) = (random(&[batch, m, width], seed), random(&[batch, n, width], seed ^ 1), random(&[batch, n, width], seed ^ 2));
        let shape = [[batch, heads, m, n], [1, heads, m, n], [batch, 1, 1, n], [1, 1, m, n]][per];
        let bias = random(&shape, seed ^ 3);
        for bias in [None, Some(&bias)] {
            let (found, expected) = (attention(&q, &k, &v, heads, bias).unwrap(), plain_attention(&q, &k, &v, heads, bias));
            prop_assert!(difference(&found, &expected) < 2e-6);
        }
        let qkv = random(&[batch, n, 3 * width], seed);
        let part = |i: usize| qkv.narrow(2, i * width, width).unwrap().contiguous().unwrap();
        let mask = Tensor::from_vec((0..batch * n).map(|i| u32::from(i % n == 0 || i % 3 > 0)).collect(), (batch, n), &Device::Cpu).unwrap();
        let bias = padding_bias(&mask).unwrap().broadcast_add(&causal_bias(0, n, None).unwrap()).unwrap();
        let expected = plain_attention(&part(0), &part(1), &part(2), heads, Some(&bias));
        let found = self_attention(&qkv, heads, Some(&bias)).unwrap();
        prop_assert!(difference(&found, &expected) < 2e-6);
        // A sequence by itself gives the same bits.
        let alone = self_attention(&qkv.i(..1).unwrap(), heads, Some(&bias.i(..1).unwrap())).unwrap();
        prop_assert_eq!(difference(&alone, &found.i(..1).unwrap()), 0.0);
    }

    #[test]
    fn dense_layers_are_products(rows in 1_usize..90, inputs in 1_usize..60, outputs in 1_usize..80, seed: u64) {
        let (x, weight) = (random(&[rows, inputs], seed), random(&[outputs, inputs], seed ^ 1));
        let (bias, residual) = (random(&[outputs], seed ^ 2), random(&[rows, outputs], seed ^ 3));
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let layer = Linear::new(&Device::Cpu, &values(&weight), &values(&bias)).unwrap();
        let expected = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        prop_assert!(difference(&layer.forward(&x).unwrap(), &expected) < 2e-5);
        let onto = layer.forward_onto(&x.reshape((rows, 1, inputs)).unwrap(), &residual).unwrap();
        prop_assert!(difference(&onto.squeeze(1).unwrap(), &(&expected + &residual).unwrap()) < 2e-5);
        let activated = layer.forward_activated(&x, Activation::Gelu).unwrap();
        prop_assert!(difference(&activated, &expected.gelu_erf().unwrap()) < 2e-5);
        // The layer of other devices, and the same of columns.
        let columns = values(&weight.t().unwrap().contiguous().unwrap());
        let plain = plainly(|| {
            [
                Linear::new(&Device::Cpu, &values(&weight), &values(&bias)).unwrap(),
                Linear::of_columns(&Device::Cpu, &columns, &values(&bias)).unwrap(),
            ]
        });
        for plain in plain {
            prop_assert!(matches!(plain.form, LinearForm::Tensors(_)));
            let wide = plain.forward_onto(&x.reshape((rows, 1, inputs)).unwrap(), &residual).unwrap();
            prop_assert!(difference(&wide, &onto) < 2e-5);
            prop_assert!(difference(&plain.forward_activated(&x, Activation::Gelu).unwrap(), &activated) < 2e-5);
        }
        prop_assert!(layer.forward(&weight.i(..1).unwrap().pad_with_zeros(D::Minus1, 0, 1).unwrap()).is_err());
    }

    #[test]
    fn patches_are_a_convolution(n in 1_usize..3, patch in 1_usize..5, height in 5_usize..20, width in 5_usize..20, seed: u64) {
        let (pixels, weight) = (random(&[n, 3, height, width], seed), random(&[7, 3, patch, patch], seed ^ 1));
        let expected = pixels.conv2d(&weight, 0, patch, 1, 1).unwrap().flatten_from(2).unwrap().transpose(1, 2).unwrap();
        let kernel = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let layer = Linear::new(&Device::Cpu, &kernel, &[0.0; 7]).unwrap();
        let found = layer.forward(&patches(&pixels, patch).unwrap()).unwrap();
        prop_assert!(difference(&found, &expected.contiguous().unwrap()) < 2e-5);
    }
}

/// Every layer without weights of its own, and the norms, by this crate's kernels and by candle's operations.
#[test]
fn plain_layers_are_the_kernels() {
    let x = random(&[3, 7, 24], 5);
    for name in ["gelu", "gelu_new", "quick_gelu", "relu", "silu", "tanh"] {
        let activation: Activation = name.parse().unwrap();
        let x = (&x * 6.0).unwrap();
        let mut values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        activation.apply(Isa::detect(), &mut values);
        let values = Tensor::from_vec(values, x.dims(), &Device::Cpu).unwrap();
        assert!(difference(&plain::activate(activation, &x).unwrap(), &values) < 2e-6, "{name}");
    }
    let values = |seed| Factors::Values(random(&[24], seed).to_vec1::<f32>().unwrap());
    let tensor = |seed| Factors::Tensor(random(&[24], seed));
    let norms = [
        LayerNorm { weight: values(1), bias: values(2), eps: 1e-5 },
        LayerNorm { weight: tensor(1), bias: tensor(2), eps: 1e-5 },
    ];
    let [kernel, plain] = norms.map(|norm| norm.forward(&x).unwrap());
    assert!(difference(&kernel, &plain) < 2e-6);
    let norms = [RmsNorm { weight: values(3), eps: 1e-6 }, RmsNorm { weight: tensor(3), eps: 1e-6 }];
    let [kernel, plain] = norms.map(|norm| norm.forward(&x).unwrap());
    assert!(difference(&kernel, &plain) < 2e-6);
    let bias = random(&[3, 1, 7, 7], 4);
    let attend = || self_attention(&x, 2, Some(&bias)).unwrap();
    assert!(difference(&attend(), &plainly(attend)) < 2e-6);
    let apart = || attention_scaled(&x.narrow(1, 0, 2).unwrap(), &x, &x, 3, 0.5, None).unwrap();
    assert!(difference(&apart(), &plainly(apart)) < 2e-6);
    assert!(difference(&normalise(&x).unwrap(), &plainly(|| normalise(&x)).unwrap()) < 1e-6);
}

#[test]
fn a_device_without_memory_is_told_from_a_defect() {
    let out = |words: &str| compute("a layer")(candle_core::Error::Msg(words.to_owned()));
    let words = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
    assert!(matches!(out(words), ModelError::DeviceMemory { .. }));
    assert!(out(words).to_string().contains("or run on a device with more memory"));
    assert!(matches!(out("shape mismatch in matmul"), ModelError::Compute { .. }));
}

#[test]
fn vectors_are_normalised_and_zeros_stay() {
    let x = Tensor::new(&[[3.0_f32, 4.0], [0.0, 0.0], [1e-30, 0.0]], &Device::Cpu).unwrap();
    assert_eq!(normalise(&x).unwrap().to_vec2::<f32>().unwrap(), [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]);
    let plain = plainly(|| normalise(&x)).unwrap();
    assert!(difference(&plain, &normalise(&x).unwrap()) < 1e-6);
    let ids = Tensor::new(&[[1_u32, 0]], &Device::Cpu).unwrap();
    let table = Embedding { table: x.to_dtype(DType::F32).unwrap() };
    assert_eq!(table.forward(&ids).unwrap().to_vec3::<f32>().unwrap(), [[[0.0, 0.0], [3.0, 4.0]]]);
}

"""Proves the files that are exchanged with faiss, NumPy, clip-retrieval and FROMAGe, by those tools' own code.

    pip install numpy faiss-cpu pyarrow torch
    cargo build -p groundloom-index --example exchange
    python crates/groundloom-index/scripts/check_exchange.py target/debug/examples/exchange
"""

import os
import pickle
import subprocess
import sys
import tempfile

import faiss
import numpy as np
import pyarrow.parquet
import torch

binary = sys.argv[1]
rows, dims = 300, 20
vectors = np.random.default_rng(3).normal(size=(rows, dims)).astype("<f4")
addresses = [f"https://example.org/{i}-ü.jpg" for i in range(rows)]


def converted(path, metric, folder, keys):
    out = os.path.join(folder, os.path.basename(path) + ".out")
    os.mkdir(out)
    subprocess.run([binary, path, metric, out], check=True)
    index = faiss.read_index(os.path.join(out, "img_emb.index"))
    assert type(index) is (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP), type(index)
    assert (index.ntotal, index.d) == (rows, dims)
    assert np.array_equal(index.reconstruct_n(0, rows), vectors)
    found = index.search(vectors[:50], 5)
    own = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(dims)
    own.add(vectors)
    assert np.array_equal(found[1], own.search(vectors[:50], 5)[1])
    assert np.array_equal(np.load(os.path.join(out, "img_emb", "img_emb_0.npy")), vectors)
    assert pyarrow.parquet.read_table(os.path.join(out, "metadata", "metadata_0.parquet")).num_rows == rows
    # As FROMAGe's load_fromage reads its files: paths are gathered, matrices concatenated and made unit length.
    with open(os.path.join(out, "cc3m_embeddings.pkl"), "rb") as file:
        data = pickle.load(file)
    paths, matrix = [], []
    paths.extend(data["paths"])
    matrix.append(data["embeddings"])
    matrix = np.concatenate(matrix, axis=0)
    assert len(paths) == matrix.shape[0] and paths == keys, paths[:3]
    assert matrix.dtype == np.dtype("<f4") and np.array_equal(matrix, vectors)
    print("ok", os.path.basename(path), metric)


with tempfile.TemporaryDirectory() as folder:
    numbers = [str(i) for i in range(rows)]
    for metric, kind in (("ip", faiss.IndexFlatIP), ("l2", faiss.IndexFlatL2)):
        path = os.path.join(folder, f"{metric}.faiss")
        index = kind(dims)
        index.add(vectors)
        faiss.write_index(index, path)
        converted(path, metric, folder, numbers)
    path = os.path.join(folder, "a.npy")
    np.save(path, vectors)
    converted(path, "l2", folder, numbers)
    forms = {
        "array": vectors,
        "double": vectors.astype("<f8"),
        "rows": list(vectors),
        "numbers": vectors.tolist(),
        "tensor": torch.from_numpy(vectors),
        "tensors": list(torch.from_numpy(vectors)),
    }
    for name, embeddings in forms.items():
        for protocol in (2, 3, 4, 5):
            path = os.path.join(folder, f"{name}-{protocol}.pkl")
            with open(path, "wb") as file:
                pickle.dump({"paths": addresses, "embeddings": embeddings}, file, protocol=protocol)
            converted(path, "l2", folder, addresses)

    class Harm:
        def __reduce__(self):
            return (os.mkdir, (os.path.join(folder, "harm"),))

    hnsw = faiss.IndexHNSWFlat(dims, 8)
    hnsw.add(vectors)
    faiss.write_index(hnsw, os.path.join(folder, "hnsw.faiss"))
    for name, harmful in (("harm", Harm()), ("whole", vectors.astype("<i4")), ("fortran", np.asfortranarray(vectors))):
        with open(os.path.join(folder, f"{name}.pkl"), "wb") as file:
            pickle.dump({"paths": addresses, "embeddings": harmful}, file)
    for name in ("hnsw.faiss", "harm.pkl", "whole.pkl", "fortran.pkl"):
        result = subprocess.run([binary, os.path.join(folder, name), "ip", os.path.join(folder, "none")], capture_output=True, text=True)
        assert result.returncode == 1, (name, result)
        print("refused", result.stderr.strip()[len(folder) + 1 :][:150])
    assert not os.path.exists(os.path.join(folder, "harm"))

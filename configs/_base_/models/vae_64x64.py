# The VAE of Fig. 9, whose architecture the paper does not give: 3 million parameters, four upsamplers.
model = dict(
    type="VAE",
    data_preprocessor=dict(type="ImgDataPreprocessor", mean=[0.0] * 3, std=[255.0] * 3),
    upsample_cfg=dict(type="PixelDCL"),
    image_size=64,
    encoder_channels=(32, 64, 128, 256),
    decoder_channels=(256, 128, 64, 32, 16),
    latent_channels=128,
    std="learned",
    beta=1.0,
    importance_samples=0,
    norm_cfg=dict(type="BN"),
    act_cfg=dict(type="ReLU"),
)
